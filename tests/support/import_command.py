"""`lrtrain import` in this process, and what it leaves."""

from pathlib import Path

import pytest

from commandline import refusal
from lrtrain.cli.main import main
from lrtrain.config.trained_model import load
from lrtrain.nn import Decoder


def imported(source: Path, folder: Path, *flags: str) -> Decoder:
    """Imports, and loads the checkpoint as every command does."""
    assert main(["import", str(source), "--out", str(folder / "model.ckpt"), *flags]) == 0
    return load(folder / "model.ckpt")[0]


def refused(source: Path | str, folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The line that refuses an import, which leaves nothing."""
    out = folder / "out"
    line = refusal(["import", str(source), "--out", str(out / "model.ckpt"), *flags], capsys)
    assert not out.exists() or not list(out.iterdir())
    return line.removeprefix(f"import {source}: ")
