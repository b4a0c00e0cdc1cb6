"""Every option with odd values: the run trains, or one line refuses it and nothing is left behind."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import toy
from commandline import PREFIX, arguments
from forked import FORK
from lrtrain.cli.main import main

ODD = ("-1", "0", "1e30", "nan", "inf", "x", "", "[]", "{}", "null", "9" * 20, "0.5")
LEFT_OUT = {
    ("trainer.max_steps", "-1"),
    ("trainer.max_steps", "9" * 20),
    ("model.decoder.depth", "9" * 20),
    ("model.optimizers.other.differentiable", "null"),
}
"""Work that is asked for and does not end; and what torch's AdamW looks at in its first step alone.

A step to try an optimizer would refuse the last, and with it optimizers that run on a GPU only."""
QUICK = (
    ("name", "a\0b"),
    ("data.path", "a\0b"),
    ("ckpt_path", "a\0b"),
    ("trainer.accelerator", "tpu"),
    ("trainer.devices", "9" * 20),
    ("trainer.check_val_every_n_epoch", "0"),
    ("model.decoder.vocab_size", "9" * 14),
    ("model.decoder.attention.std", "-1"),
    ("model.decoder.mlp.std", "nan"),
    ("model.decoder.rope_base", "0"),
    ("model.decoder.rope_base", "null"),
    ("model.decoder.norm_eps", "-1"),
    ("model.decoder.embedding_std", "-1"),
    ("model.optimizers.hidden.ns_steps", "9" * 20),
    ("model.optimizers.hidden.coefficients", "null"),
)
"""Each ended in a traceback once, or could."""


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["fit", *arguments(toy.shards(tmp_path_factory.mktemp("data")), Path("runs"), steps=1)]


@pytest.mark.parametrize(("key", "value"), QUICK)
def test_an_option_that_cannot_be_is_refused_in_a_line(key: str, value: str, flags: list[str], tmp_path: Path) -> None:
    assert complaint([*flags, f"--{key}={value}"], tmp_path, {2}) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_option_with_every_odd_value_trains_or_is_refused_in_a_line(flags: list[str], tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*flags, "--print_config"])
    found = []
    for number, key in enumerate(keys(yaml.safe_load(out.getvalue()))):
        for value in ODD:
            if (key, value) not in LEFT_OUT:
                folder = tmp_path / f"{number}" / (value or "empty")
                folder.mkdir(parents=True)
                found.append(complaint([*flags, f"--{key}={value}"], folder, {0, 2}))
    assert not list(filter(None, found))
    assert len(found) > 500


def keys(config: Any, at: str = "") -> Iterator[str]:
    """The options that a complete configuration has, as flags name them."""
    if not isinstance(config, dict):
        yield at
        return
    for key, value in config.items():
        inside = key in ("class_path", "init_args")
        yield from keys(value, at if inside else f"{at}.{key}".lstrip("."))


def complaint(argv: list[str], folder: Path, codes: set[int]) -> str | None:
    """What is wrong with how a command ends in an empty folder; None where nothing is."""
    process = FORK.Process(target=_run, args=(argv, str(folder)))
    process.start()
    process.join(90)
    if process.is_alive():
        process.kill()
        return f"{argv[-1]}: does not end"
    errors = (folder / "errors").read_text(errors="replace").strip()
    if process.exitcode not in codes or "Traceback" in errors:
        return f"{argv[-1]}: exit code {process.exitcode}\n{errors}"
    refused = process.exitcode == 2
    if refused and not errors.rpartition("\n")[2].startswith(PREFIX):
        return f"{argv[-1]}: no line of ours\n{errors}"
    if refused and list(folder.glob("runs/*/*")):
        return f"{argv[-1]}: left a run behind"
    return None


def _run(argv: list[str], folder: str) -> None:
    os.chdir(folder)
    with open("output", "w") as out, open("errors", "w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = out, err
        try:
            code: Any = main(argv)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        out.flush()
        err.flush()
        os._exit(code or 0)
