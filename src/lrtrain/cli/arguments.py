"""The argument parser of our own commands."""

import argparse
from typing import NoReturn

from lrtrain.runtime.errors import UserError


class Arguments(argparse.ArgumentParser):
    """Raises a UserError of one line where argparse would print its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
