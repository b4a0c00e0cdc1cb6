"""`lrtrain <command>`: finds the command and imports only what it needs."""

import importlib
import os
import sys

from lrtrain import __version__
from lrtrain.cli.arguments import announce
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.own_modules import find_own_modules
from lrtrain.runtime.ranks import exit_code, leave_group, should_print

COMMANDS = {
    "fit": ("lrtrain.cli.fit:fit", "train a model from YAML recipes, or resume one"),
    "validate": ("lrtrain.cli.fit:validate", "loss, perplexity and bits per byte on held-out data"),
    "test": ("lrtrain.cli.fit:test", "the same on the test split"),
    "prepare": ("lrtrain.cli.prepare:main", "turn documents into a tokenizer and token shards"),
    "generate": ("lrtrain.cli.generate:main", "continue a text with a trained checkpoint"),
    "consolidate": ("lrtrain.cli.consolidate:main", "make one file of a checkpoint that several processes wrote"),
    "compare": ("lrtrain.cli.compare:main", "a table, figures and a page of tracked runs"),
    "plan": ("lrtrain.cli.plan:main", "tell parameters, FLOPs, memory and time of a configuration"),
    "experiment": ("lrtrain.cli.experiment:main", "reproduce a figure or table of the papers, with a verdict"),
    "scaling": ("lrtrain.cli.scaling:main", "plan, train and fit runs of equal FLOPs: scaling laws"),
    "sweep": ("lrtrain.cli.sweep:main", "train the points of a search space and write the best one's YAML"),
    "new": ("lrtrain.cli.new:main", "write a part of your own, its YAML and its test"),
    "sync": ("lrtrain.cli.sync:main", "send tracked points that still wait on this machine"),
}

LATE = ("plan", "sweep", "scaling", "experiment", "compare")
"""Commands whose own first line waits for large imports."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 a mistake of the user's, 75 what a restart may get past, 130
    interrupted by Ctrl-C. A fit that a signal ended leaves with 128 + the signal's number."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"lrtrain {__version__}")
        return 0
    try:
        return _run(argv[0], argv[1:])
    except UserError as error:
        if os.environ.get("LRTRAIN_DEBUG"):
            raise
        line = " ".join(str(error).split("\n"))
        if should_print(line):
            print(f"lrtrain: error: {line[:1000]}{' …' if len(line) > 1000 else ''}", file=sys.stderr)
        return exit_code(error)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("lrtrain: interrupted", file=sys.stderr)
        return 130


def _run(command: str, argv: list[str]) -> int:
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}: {near(command, COMMANDS, 'the commands are')}")
    find_own_modules(argv)
    if command in LATE and argv and not {"-h", "--help"} & {*argv}:
        announce(f"{command}: starting; the first import takes seconds …")
    module, _, function = COMMANDS[command][0].partition(":")
    code: int = getattr(importlib.import_module(module), function)(argv)
    leave_group()
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: lrtrain <command> [arguments]\n\n"
        "Pre-train language models whose weights are low-rank from the first step.\n\n"
        f"{commands}\n\n"
        "lrtrain <command> --help tells a command's arguments. LRTRAIN_DEBUG=1 shows tracebacks."
    )
