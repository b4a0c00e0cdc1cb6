"""What our commands share: an argument parser that refuses in one line, and the first word of a slow command."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.ranks import is_first


class Arguments(argparse.ArgumentParser):
    """Raises a UserError of one line where argparse would print its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def announce(line: str) -> None:
    """Says on stderr, once for all processes, what a command is about to do: its imports alone take seconds."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """The type of an argument that counts."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text}")
    return int(text)


def settings(flags: Sequence[str]) -> dict[str, str]:
    """Settings of `lrtrain fit` by their keys, from `--key value` and `--key=value`. Raises UserError for others."""
    found = {}
    waiting = iter(flags)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            raise UserError(f"{argument}: stands alone; every argument is an option, as in --trainer.max_steps 100")
        if not equals:
            value = next(waiting, "")
            if not value or value.startswith("--"):
                raise UserError(f"{flag}: expected a value")
        found[flag.removeprefix("--")] = value
    return found
