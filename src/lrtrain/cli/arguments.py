"""What our commands share: an argument parser that refuses in one line, and the first word of a slow command."""

import argparse
import sys
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
