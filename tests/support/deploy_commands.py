"""The command lines in files of `deploy/`: what a script would run, and whether lrtrain takes its arguments."""

import contextlib
import io
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

from lrtrain.cli.arguments import Arguments
from lrtrain.cli.main import COMMANDS, main
from lrtrain.runtime.errors import UserError

STAND_IN = """#!/bin/sh
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n\\0'; } >> "$DEPLOY_RECORD"
"""


class _ParsedError(Exception):
    """Ends a command where its arguments are read."""


def recorded(script: str, programs: Sequence[str], folder: Path, **environment: str) -> list[list[str]]:
    """Runs a script of bash in a folder, with stand-ins that write down their command line and end well.

    Returns those command lines in their order, the program's name first.
    """
    stand_ins, record = folder / "stand-ins", folder / "record"
    stand_ins.mkdir(parents=True)
    record.touch()
    for program in programs:
        (stand_ins / program).write_text(STAND_IN)
        (stand_ins / program).chmod(0o755)
    path = f"{stand_ins}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path, "DEPLOY_RECORD": str(record)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return [line.split("\0")[:-1] for line in record.read_text().split("\n\0")[:-1]]


def of_lrtrain(command: Sequence[str]) -> list[str]:
    """The arguments of lrtrain in a command line that may begin with what starts it, as `torchrun … lrtrain fit …`."""
    names = [os.path.basename(word) for word in command]
    return list(command[names.index("lrtrain") + 1 :])


def check_accepted(arguments: Sequence[str]) -> None:
    """Fails unless the parser of the command takes the arguments of `lrtrain`; nothing of the command is done."""
    said = io.StringIO()
    fits = arguments[0] in ("fit", "validate", "test")
    ends = pytest.raises(SystemExit) if fits else pytest.raises(_ParsedError)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _only_parsing(), ends as end:
        assert arguments[0] in COMMANDS, f"lrtrain has no command {arguments[0]}"
        code = main([*arguments, *(["--print_config"] if fits else [])])
        pytest.fail(f"{' '.join(arguments)} ends with {code}: {said.getvalue()}")
    assert not fits or end.value.code == 0, said.getvalue()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _only_parsing() -> Iterator[None]:
    known = Arguments.parse_known_args

    def parse_all(self: Arguments, args: Any = None, namespace: Any = None) -> NoReturn:
        _, unknown = known(self, args, namespace)
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}") if unknown else _ParsedError

    def parse_known(self: Arguments, args: Any = None, namespace: Any = None) -> NoReturn:
        known(self, args, namespace)
        raise _ParsedError

    with mock.patch.multiple(Arguments, parse_args=parse_all, parse_known_args=parse_known):
        yield
