"""`lrtrain <command>`: finds the command and imports only what it needs."""

import atexit
import importlib
import os
import sys
import traceback
import warnings
from pathlib import Path

from lrtrain import __version__
from lrtrain.cli.arguments import announce
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.first_to_end import exit_code_here, stop_listening
from lrtrain.runtime.hints import near
from lrtrain.runtime.lost_processes import LostProcessError, leave_note
from lrtrain.runtime.own_modules import find_own_modules
from lrtrain.runtime.ranks import end_in_a_lost_group, end_now_if_lost, leave_group, should_print

COMMANDS = {
    "fit": ("lrtrain.cli.fit:fit", "train a model from YAML recipes, or resume one"),
    "validate": ("lrtrain.cli.fit:validate", "loss, perplexity and bits per byte on held-out data"),
    "test": ("lrtrain.cli.fit:test", "the same on the test split"),
    "prepare": ("lrtrain.cli.prepare:main", "turn documents into a tokenizer and token shards"),
    "generate": ("lrtrain.cli.generate:main", "continue a text with a trained checkpoint"),
    "evaluate": ("lrtrain.cli.evaluate:main", "ask lm-eval's tasks of a checkpoint or an exported folder"),
    "export": ("lrtrain.cli.export:main", "write a checkpoint as a folder that transformers loads"),
    "import": ("lrtrain.cli.import_model:main", "make a checkpoint of a Llama that transformers loads"),
    "consolidate": ("lrtrain.cli.consolidate:main", "make one file of a checkpoint that several processes wrote"),
    "compare": ("lrtrain.cli.compare:main", "a table, figures and a page of tracked runs"),
    "report": ("lrtrain.cli.report:main", "one page of a run: course, spectra, samples, configuration"),
    "plan": ("lrtrain.cli.plan:main", "tell parameters, FLOPs, memory and time of a configuration"),
    "profile": ("lrtrain.cli.profile:main", "tell where the time and the memory of training steps go"),
    "doctor": ("lrtrain.cli.doctor:main", "tell what will go wrong on this machine, or for a configuration"),
    "experiment": ("lrtrain.cli.experiment:main", "reproduce a figure or table of the papers, with a verdict"),
    "scaling": ("lrtrain.cli.scaling:main", "plan, train and fit runs of equal FLOPs: scaling laws"),
    "sweep": ("lrtrain.cli.sweep:main", "train the points of a search space and write the best one's YAML"),
    "new": ("lrtrain.cli.new:main", "write a part of your own, its YAML and its test"),
    "sync": ("lrtrain.cli.sync:main", "send tracked points that still wait on this machine"),
}

PACKAGE = Path(__file__).parents[1]
PLAIN_WARNING = warnings.formatwarning

LATE = ("plan", "doctor", "sweep", "scaling", "experiment", "compare")
"""Commands whose own first line waits for large imports."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0: done. 2: a mistake of the user's, which a restart would meet again. 75: what a restart may get past. 130: Ctrl-C.
    A fit that a signal ended has saved a checkpoint and leaves with 128 + the signal's number: 143 for SIGTERM, 138 for
    SIGUSR1. Whatever else goes wrong is raised, and Python ends with 1.
    """
    argv = (sys.argv[1:] if argv is None else argv) or ["--help"]
    atexit.register(end_now_if_lost)
    warnings.formatwarning = _warning_line
    try:
        return _run(argv[0], argv[1:])
    except UserError as error:
        if os.environ.get("LRTRAIN_DEBUG"):
            raise
        line = " ".join(str(error).split("\n"))
        if isinstance(error, LostProcessError) or should_print(line):
            print(f"lrtrain: error: {line[:1000]}{' …' if len(line) > 1000 else ''}", file=sys.stderr, flush=True)
        code = exit_code_here(error.exit_code) if leave_note(error.exit_code, line) else error.exit_code
        end_in_a_lost_group(code)
        return code
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = exit_code_here(1) if leave_note(1, f"{type(error).__name__}: {error}"[:1000]) else 1
        end_in_a_lost_group(code)
        if code:
            raise
        traceback.print_exc()
        return 0
    except SystemExit as ended:
        end_in_a_lost_group(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
    except KeyboardInterrupt:
        print("lrtrain: interrupted", file=sys.stderr)
        return 130
    finally:
        stop_listening()


def _run(command: str, argv: list[str]) -> int:
    if command in ("-h", "--help", "--version"):
        print(f"lrtrain {__version__}" if command == "--version" else _help(), flush=True)
        return 0
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}: {near(command, COMMANDS, 'the commands are')}")
    find_own_modules(argv)
    if command in LATE and argv and not {"-h", "--help"} & {*argv}:
        announce(f"{command}: starting; the first import takes seconds …")
    module, _, function = COMMANDS[command][0].partition(":")
    code, told = 0, None
    try:
        code = getattr(importlib.import_module(module), function)(argv)
    except SystemExit as ended:
        if not hasattr(ended, "signal"):
            raise
        told = ended.code  # by a signal: all processes agreed to leave, and leave the group as at any end
    leave_group()
    if told is not None:
        raise SystemExit(told)
    return code


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours as a line like that of an error; another's as it was shown before."""
    if Path(filename).is_relative_to(PACKAGE):
        return f"lrtrain: warning: {message}\n"
    return PLAIN_WARNING(message, category, filename, lineno, line)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: lrtrain <command> [arguments]\n\n"
        "Pre-train language models whose weights are low-rank from the first step.\n\n"
        f"{commands}\n\n"
        "lrtrain <command> --help tells a command's arguments. LRTRAIN_DEBUG=1 shows tracebacks.\n\n"
        "Exit codes: 0 done; 2 a mistake to mend; 75 a store or host does not answer: start again; 128 + its number\n"
        "(130 Ctrl-C, 143 SIGTERM) a signal, and fit has saved a checkpoint; 1 a fault of the program."
    )
