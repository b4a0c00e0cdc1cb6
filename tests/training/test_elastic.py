"""A run goes on, on any number of processes: the same weights, optimizer and constraint state for the same name."""

from pathlib import Path
from typing import Any

import pytest

from checkpoint_state import differences
from lrtrain.checkpoint import shard_folder as sharded
from lrtrain.checkpoint.directory import newest_whole
from lrtrain.runtime.errors import UserError
from ranks import on_ranks
from sharded_runs import run

STEPS = 3
LAYOUTS = {
    "one": (1, "single"),
    "ddp 2": (2, "ddp"),
    "fsdp 2": (2, "fsdp"),
    "fsdp 4": (4, "fsdp"),
    "hsdp 4": (4, "hsdp"),
}
PATHS = [
    ("one", "fsdp 2"),
    ("fsdp 2", "one"),
    ("fsdp 2", "fsdp 4"),
    ("hsdp 4", "one"),
    ("ddp 2", "fsdp 2"),
    ("fsdp 2", "ddp 2"),
    ("fsdp 2", "fsdp 2"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path]]:
    """What each layout held after a few steps, and its checkpoint."""
    found = {}
    for layout in {start for start, _ in PATHS}:
        processes, strategy = LAYOUTS[layout]
        root = tmp_path_factory.mktemp("saved")
        outcome = on_ranks(processes, run, root, "mixed", strategy, STEPS)[0]
        path, passed_over = newest_whole(root / "checkpoints")
        assert path is not None
        assert not passed_over
        found[layout] = outcome["end"], path
    return found


@pytest.mark.parametrize(("start", "goal"), PATHS, ids=[f"{start} to {goal}" for start, goal in PATHS])
def test_every_name_gets_its_own_state_back_bit_for_bit(
    start: str, goal: str, saved: dict[str, tuple[dict[str, Any], Path]], tmp_path: Path
) -> None:
    end, path = saved[start]
    processes, strategy = LAYOUTS[goal]
    outcomes = on_ranks(processes, run, tmp_path, "mixed", strategy, STEPS + 2, path)
    for outcome in outcomes:
        assert differences(end, outcome["restored"]) == []
        assert len(outcome["losses"]) == 2
    assert any("momentum" in state for state in end["states"].values())
    assert any("exp_avg_sq" in state for state in end["states"].values())
    assert end["constraints"]["SpectralRenormalization"]["vectors"]


def test_a_folder_holds_what_one_process_would_have_written(saved: dict[str, tuple[dict[str, Any], Path]]) -> None:
    end, path = saved["fsdp 2"]
    checkpoint = sharded.read(path)
    assert differences(end["weights"], dict(checkpoint["state_dict"])) == []
    (optimizer,) = checkpoint["optimizer_states"]
    by_name = {
        name: optimizer["state"][number]
        for group in optimizer["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    assert differences(end["states"], by_name) == []
    one = sharded.read(saved["one"][1])
    assert checkpoint.keys() == one.keys()
    assert checkpoint["callbacks"].keys() == one["callbacks"].keys()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("low-rank", "of another architecture: it lacks the model's decoder.blocks.0.mlp.gate.A"),
        ("mixed, adamw", "optimizer for decoder.blocks.0.attention.query.A is Spectron, the configuration's is AdamW"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    kind: str, why: str, saved: dict[str, tuple[dict[str, Any], Path]], tmp_path: Path
) -> None:
    for goal in ("one", "fsdp 2"):
        processes, strategy = LAYOUTS[goal]
        refusals = on_ranks(processes, _refusal, tmp_path, kind, strategy, saved["fsdp 2"][1])
        assert all(why in line for line in refusals), refusals


def _refusal(root: Path, kind: str, strategy: str, path: Path) -> str:
    try:
        run(root, kind, strategy, STEPS + 1, path)
    except (UserError, ValueError) as error:
        return str(error)
    return "not refused"
