"""What the checkpoints of a run of `checkpoint_program` hold, and which batches that run drew."""

from pathlib import Path
from typing import Any

import torch

from checkpoint_program import BATCHES
from lrtrain.checkpoint.directory import newest_whole, steps_in
from lrtrain.checkpoint.single_file import read_whole


def saved_steps(root: Path) -> list[int]:
    return sorted(steps_in(root / "checkpoints"))


def newest(root: Path) -> Path:
    path, passed_over = newest_whole(root / "checkpoints")
    assert path is not None
    assert passed_over == []
    return path


def batches(root: Path) -> list[int]:
    return [int(line) for line in (root / "batches.txt").read_text().split()]


def expected_batches(count: int) -> list[int]:
    return [1000 * (i // BATCHES) + i % BATCHES + 1 for i in range(count)]


def assert_same_state(one: Path, other: Path) -> None:
    """Weights, optimizer, scheduler, data position and random state, bit for bit."""
    a, b = read_whole(one), read_whole(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(a[key], b[key]) == []
    assert a["loops"]["fit_loop"]["state_dict"] == b["loops"]["fit_loop"]["state_dict"]
    assert differences(a["lrtrain"]["rng"], b["lrtrain"]["rng"]) == []


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints, or parts of them, are not the same bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in differences(a.get(key), b.get(key), f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [where]
