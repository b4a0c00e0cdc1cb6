"""The command reference: every command with its arguments, from its own parser."""

import argparse
import importlib
from unittest.mock import patch

from lrtrain.cli.arguments import Arguments
from lrtrain.cli.fit_help import page as fit_page
from lrtrain.cli.main import COMMANDS

CONFIGURED = ("fit", "validate", "test")
"""Commands whose arguments are the keys of the configuration."""


class Caught(Exception):  # noqa: N818  it is no error
    """A command has made its parser."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command makes, as it is when the command begins to read its arguments."""
    made: list[argparse.ArgumentParser] = []

    def catch(self: argparse.ArgumentParser, *_: object) -> None:
        made.append(self)
        raise Caught

    module, _, function = COMMANDS[command][0].partition(":")
    run = getattr(importlib.import_module(module), function)
    with patch.object(Arguments, "parse_args", catch), patch.object(Arguments, "parse_known_args", catch):
        try:
            run([])
        except Caught:
            return made[0]
    raise ValueError(f"lrtrain {command} reads no arguments by {Arguments.__name__}")


def page() -> str:
    """The page of all commands."""
    parts = [
        "# Commands",
        "`lrtrain COMMAND --help` prints what stands here. The page is made from the commands' own parsers.",
        "\n".join(
            [
                "| command | |",
                "|---|---|",
                *(f"| [`{name}`](#{name}) | {text} |" for name, (_, text) in COMMANDS.items()),
            ]
        ),
        "Exit codes: 0 done; 2 a mistake to mend, told in one line (`LRTRAIN_DEBUG=1` shows the traceback); 75 a store "
        "or host does not answer: start again; 128 + its number (130 Ctrl-C, 143 SIGTERM) a signal, and `fit` has "
        "saved a checkpoint; 1 a fault of the program.",
    ]
    for command in COMMANDS:
        parts.append(f"## {command}")
        if command in CONFIGURED:
            parts += [
                "Every key of the [configuration](configuration.md) is a flag of this command.",
                f"```text\n{fit_page(command)}\n```",
            ]
        else:
            parts += described(parser_of(command), f"lrtrain {command}", 3)
    return "\n\n".join(parts)


def described(parser: argparse.ArgumentParser, name: str, level: int) -> list[str]:
    """Purpose, usage and arguments of a parser, and those of its parts."""
    parser.prog = name
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    parts = [parser.description or "", f"```text\n{usage}\n```"]
    rows, inner = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner += list(action.choices.items())
        elif not isinstance(action, argparse._HelpAction):
            rows.append(f"| {_written(action)} | {_cell(action.help or '')} |")
    if rows:
        parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    parts.append(parser.epilog or "")
    for part, below in inner:
        parts += [
            f"{'#' * level} {name.removeprefix('lrtrain ')} {part}",
            *described(below, f"{name} {part}", level + 1),
        ]
    return [part for part in parts if part]


def _written(action: argparse.Action) -> str:
    """`--flag VALUE`, or the name of what stands alone."""
    value = action.metavar or (",".join(map(str, action.choices)) if action.choices else None)
    value = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        return f"`{value or action.dest}`"
    shown = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
    return f"`{action.option_strings[-1]}{shown}`"


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
