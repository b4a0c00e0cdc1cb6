"""Data sets that are made in parts: requests, all parts at once, and refusals."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lrtrain.data.shares import prepare_share
from lrtrain.data.spec import PrepareSpec
from lrtrain.runtime.errors import UserError
from sources import TEXTS


def write_files(folder: Path) -> None:
    """The documents of `sources` in seven files of different length."""
    folder.mkdir()
    bounds = [0, 20, 50, 51, 130, 260, 300, 400]
    for number, (begin, end) in enumerate(pairwise(bounds)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[begin:end])
        (folder / f"{number}.jsonl").write_text(lines)


def spec_of(text: Path, **changes: Any) -> PrepareSpec:
    return PrepareSpec(**{"source": [str(text)], "train_vocab_size": 300, "val_fraction": 0.2, "workers": 1, **changes})


def in_parts(spec: PrepareSpec, out: Path, of: int, order: int = 1) -> Path:
    for number in range(of)[::order]:
        prepare_share(spec, str(out), number, of)
    return out


def refused(call: Callable[[], object], words: str) -> None:
    """Make a call that must be refused with a line of these words."""
    with pytest.raises(UserError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
