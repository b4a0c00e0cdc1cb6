"""Run directories that were renamed or copied: found under the name that they have, and each a run of its own."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from lrtrain.checkpoint.single_file import write_whole
from lrtrain.cli.main import main
from lrtrain.config.trained_model import newest_checkpoint
from lrtrain.tracking.course import last_time
from lrtrain.tracking.named_runs import named_runs
from tracked import history, make_logger, mlflow_run


def track(root: Path, name: str, *values: float, first: int = 1, send: bool = True) -> None:
    logger = make_logger(root, f"{name}/0001", send=send)
    logger.log_config("", {"name": name})
    for step, value in enumerate(values, start=first):
        logger.log_metrics({"val/loss": value}, step)
    logger.finalize("success")


@pytest.mark.parametrize("tracker", [True, False])
def test_runs_are_compared_under_the_name_of_their_folder(
    root: Path, tracker: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    track(root, "a", 3.0, 2.0)
    (root / "a").rename(root / "b")
    shutil.copytree(root / "b", root / "c")
    track(root, "d", 4.0, 3.5, send=False)
    if not tracker:
        (root / "mlflow.db").unlink()
    found = named_runs(None, str(root), names=["d", "c", "b"], metrics=["val/*"])
    assert [(run.name, run.run_name, run.last["val/loss"]) for run in found] == [
        ("d", "d/0001", 3.5),
        ("c", "c/0001", 2.0),
        ("b", "b/0001", 2.0),
    ]
    assert main(["compare", "b", "d", "--runs", str(root)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["b", "d"]
    assert main(["compare", "none", "--runs", str(root)]) == 2


def test_a_copy_that_goes_on_leaves_the_original_in_mlflow_alone(root: Path) -> None:
    track(root, "a", 3.0, 2.0)
    original = mlflow_run(root / "a/0001")[1].info.run_id
    shutil.copytree(root / "a", root / "b")
    track(root, "b", 1.0, first=3)
    assert history(root / "a/0001", "val/loss") == [(1, 3.0), (2, 2.0)]
    _, copy = mlflow_run(root / "b/0001")
    assert copy.info.run_id != original
    assert (copy.info.run_name, copy.data.metrics["Val/loss"]) == ("b/0001", 1.0)
    assert history(root / "b/0001", "val/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    (root / "a").rename(root / "moved")
    track(root, "moved", 1.5, first=3)
    assert mlflow_run(root / "moved/0001")[1].info.run_id == original


def test_the_newest_run_is_the_one_that_trained_last_wherever_it_was_copied_since(root: Path) -> None:
    for number, name in enumerate(("a", "b"), start=1):
        track(root, name, 1.0, send=False)
        write_whole({"x": torch.ones(1)}, root / name / "0001/checkpoints" / f"step-{number:08d}.ckpt")
        (root / name / "0001/metrics.jsonl").write_text(f'{{"time": {number}, "status": "FINISHED"}}\n')
    os.utime(root / "a/0001/checkpoints")
    assert newest_checkpoint(root).name == "step-00000002.ckpt"
    assert [last_time(root / name / "0001/metrics.jsonl") for name in "ab"] == [1, 2]
    assert last_time(root / "none") is None
