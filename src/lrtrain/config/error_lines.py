"""One clear line from what the configuration parser says."""

import importlib
import re

from lrtrain.config.settings import Settings
from lrtrain.runtime.hints import near

RECIPE = "name a whole recipe, as in --config configs/quickstart.yaml"
# What a union says of its other members, which nobody asked for.
OTHER_MEMBER = re.compile(r"Expected an? (?:<class|typing\.)|Not a valid subclass|Expected an instantiatable")


def one_line(message: str, settings: Settings, options: list[str]) -> str:
    """Says what is wrong, in which file, flag or variable, under which key, and the nearest name that would be right.

    Args:
        message: The parser's message, of any number of lines.
        settings: What the user set.
        options: Dotted names of the options of the parser that says it: the whole one, or a class's.
    """
    if match := re.search(r"following arguments are required: (.+)", message):
        return f"the configuration lacks {match[1]}: {RECIPE}" if "config" in options else f"lacks {match[1]}"
    if match := re.search(r"Interpolation key '\.*([^']+)' not found.*?full_key: (\S+)", message, re.S):
        return f"{settings.where(match[2])}: ${{{match[1]}}} names no key of the configuration; correct the reference"
    if match := re.match(r"(.+)\n\s+full_key: (\S+)", message):
        return f"{settings.where(match[2])}: {match[1]}"
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        if not match[1].startswith("--"):
            return f"{match[1]}: stands alone; every argument is an option, as in --trainer.max_steps 100"
        return _unknown_key(match[1].removeprefix("--").partition("=")[0], options, settings)
    if match := re.fullmatch(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'.*", message.strip()):
        return _unknown_key(".".join(filter(None, match.groups())), options, settings)
    return _explain(message, "", settings)


def _explain(text: str, key: str, settings: Settings) -> str:
    """What a message says of the value under a key; one of a union says what its most telling member says."""
    text = text.strip()
    if match := re.match(r'Parser key "([^"]+)":\s+(.+)', text, re.S):
        return _explain(match[2], f"{key}.{match[1]}" if key else match[1], settings)
    if "Errors:" in text:
        errors = text.partition("Errors:")[2]
        members = re.findall(r"^  - (.*(?:\n {4}.*)*)", errors, re.M)
        members += re.findall(r"^    - (.*(?:\n {6}.*)*)", errors, re.M)
        telling = [member for member in members if not OTHER_MEMBER.match(member.strip())]
        if telling:
            return _explain(telling[0], key, settings)
    if ": unknown key; " in text or any(text.startswith(f"{setting.where}: ") for setting in settings):
        return text  # of a nested parser, explained already
    if match := re.search(r"module '([^']+)' has no attribute '([^']+)'", text):
        module, name = match.groups()
        public = [known for known in dir(importlib.import_module(module)) if not known.startswith("_")]
        place = settings.holding(f"{module}.{name}", key)
        return f"{place}: the module {module} has no {name}; {near(name, public)}"
    if match := re.search(r"No module named '([^']+)'", text):
        place = settings.holding(match[1], key)
        return f"{place}: there is no module {match[1]}; name one that is installed, in this folder or beside the YAML"
    if match := re.search(r"Expected '([^']+)' to be a subclass of <class '([^']+)'>", text):
        return f"{settings.holding(match[1], key)}: {match[1]} is no {match[2]}; name a subclass of it"
    if match := re.search(r"Expected an import path or a subclass spec, but got (.*?)\. ", text):
        return f"{settings.where(key)}: expected a class path, got {match[1]}"
    given = re.search(r"(?:Got value|Given value): (.*)", text)
    types = re.findall(r"(?:Expected an?|Expected) (?:<class '([\w.]+)'>|typing\.Literal\[([^\]]+)\])", text)
    place = settings.where(key, given[1] if given else None)
    if given and types:
        wanted = dict.fromkeys(name or values for name, values in types if name != "NoneType")
        return _flat(f"{place}: expected {' or '.join(wanted)}, got {given[1]}")
    return f"{place}: {_flat(text)}" if place else _flat(text)


def _unknown_key(key: str, options: list[str], settings: Settings) -> str:
    """Names the first part of a dotted key that does not exist, and the nearest of those that do."""
    above = ""
    for part in key.split("."):
        here = {name.removeprefix(above).split(".")[0] for name in options if name.startswith(above)}
        if part not in here:
            break
        above += f"{part}."
    advice = near(part, sorted(here)) if here else "leave it out"
    return f"{settings.place(above + part)}: unknown key; {advice}"


def _flat(text: str) -> str:
    text = re.sub(r"Got value: Namespace\(.*", "", " ".join(text.split()))
    return text if len(text) <= 300 else text[:297] + "..."
