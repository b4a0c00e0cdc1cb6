"""What the checkpoints of a run of `checkpoint_program` hold, and which batches that run drew."""

from pathlib import Path

import torch

from checkpoint_program import BATCHES
from lrtrain.callbacks.checkpoint_folder import newest_whole, steps_in
from lrtrain.callbacks.wholefile import read_whole


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
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    assert a["loops"]["fit_loop"]["state_dict"] == b["loops"]["fit_loop"]["state_dict"]
    assert torch.equal(a["lrtrain"]["rng"][0]["torch"], b["lrtrain"]["rng"][0]["torch"])
