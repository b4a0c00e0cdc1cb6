"""A run that is resumed from an earlier step shows one course, and the one before can still be found."""

from pathlib import Path

import pytest
from mlflow.entities import ViewType

import toy
from commandline import arguments
from lrtrain.cli import sync
from lrtrain.cli.main import main
from lrtrain.tracking.course import newest_course, records
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.runs import TrackedRun, tracked_runs
from lrtrain.tracking.spool import note_what_is_lost
from tracked import history, make_logger, mlflow_run


def session(root: Path, rate: float, values: dict[int, float], resumed: int | None = None) -> None:
    logger = make_logger(root)
    if resumed is not None:
        logger.resume(resumed)
    logger.log_config(f"rate: {rate}\n", {"rate": rate})
    for step, value in values.items():
        logger.log_metrics({"loss": value, "epoch": 0}, step)
    logger.finalize("success")


def readers(root: Path) -> list[TrackedRun]:
    own = recorded(root / "toy/0001")
    (tracked,) = tracked_runs(None, str(root), names=["toy"])
    assert own is not None
    return [own, tracked]


@pytest.mark.parametrize("delivered", [True, False])
def test_a_course_that_was_abandoned_is_superseded_everywhere_and_stays_in_the_spool(
    root: Path, delivered: bool
) -> None:
    run_dir, state = root / "toy/0001", root / "toy/0001/mlflow.json"
    session(root, 0.1, {step: 10.0 - step for step in range(10)})
    if not delivered:
        state.unlink()
    session(root, 0.2, {4: 8.0, 5: 8.5, 6: 8.7}, resumed=3)
    for run in readers(root):
        assert run.series("loss").step.tolist() == list(range(7))
        assert run.series("loss").value.tolist() == [10.0, 9.0, 8.0, 7.0, 8.0, 8.5, 8.7]
        assert run.series("epoch").step.tolist() == list(range(7))
        assert (run.last["loss"], run.params, run.status) == (8.7, {"rate": "0.2"}, "FINISHED")
    assert [value for _, value in history(run_dir, "loss")] == [10.0, 9.0, 8.0, 7.0, 8.0, 8.5, 8.7]
    assert sum("metrics" in record for _, record in records(run_dir / "metrics.jsonl")) == 13, "nothing is lost"
    client, new = mlflow_run(run_dir)
    (old,) = client.search_runs([new.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert old.data.tags["lrtrain.superseded"] == f"resumed from an earlier step: {new.info.run_id}"
    assert (old.data.params, old.data.metrics["loss"]) == ({"rate": "0.1"}, 1.0)

    session(root, 0.3, {4: 6.0}, resumed=3)
    for run in readers(root):
        assert run.series("loss").value.tolist() == [10.0, 9.0, 8.0, 7.0, 6.0]
        assert run.params == {"rate": "0.3"}
    assert mlflow_run(run_dir)[1].data.params == {"rate": "0.1", "rate/2": "0.3"}, "rate 0.2 is of no step any more"
    newest = mlflow_run(run_dir)[1].info.run_id
    state.unlink()
    assert sync.main([str(run_dir)]) == 0
    assert mlflow_run(run_dir, f"sqlite:///{root}/mlflow.db")[1].info.run_id == newest
    assert readers(root)[1].series("loss").value.tolist() == [10.0, 9.0, 8.0, 7.0, 6.0]


def test_a_run_that_goes_on_from_its_end_stays_the_same_mlflow_run(root: Path) -> None:
    session(root, 0.1, {0: 3.0, 1: 2.0})
    before = mlflow_run(root / "toy/0001")[1].info.run_id
    session(root, 0.2, {1: 2.0, 2: 1.0}, resumed=1)
    _, run = mlflow_run(root / "toy/0001")
    assert run.info.run_id == before
    assert run.data.params == {"rate": "0.1", "rate/2": "0.2"}
    assert history(root / "toy/0001", "loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert newest_course(root / "toy/0001/metrics.jsonl") == 0


def test_fit_from_an_earlier_checkpoint_leaves_one_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there: the record is what counts
    fit = ["fit", *arguments(toy.shards(tmp_path), tmp_path / "runs", "--trainer.logger=true", steps=4)]
    assert main([*fit, "--checkpoints.every_n_steps=2", "--checkpoints.keep=-1"]) == 0
    run_dir = tmp_path / "runs/quickstart/0001"
    first = recorded(run_dir)
    checkpoint = run_dir / "checkpoints/step-00000002.ckpt"
    rates = ["--model.optimizers.hidden.lr=1e-6", "--model.optimizers.other.lr=1e-7"]
    assert main([*fit, f"--ckpt_path={checkpoint}", "--trainer.max_steps=3", *rates]) == 0
    second = recorded(run_dir)
    assert first is not None
    assert second is not None
    assert first.series("train/loss").step.tolist() == [1, 2, 3, 4]
    assert second.series("train/loss").step.tolist() == [1, 2, 3]
    assert second.series("train/loss").value.tolist()[:2] == first.series("train/loss").value.tolist()[:2]
    assert second.series("lr/hidden").value[-1] <= 1e-6
    assert second.params["model.optimizers.hidden.init_args.lr"] == "1e-06"
    assert all(series.step[-1] <= 3 for series in second.metrics.values())


def test_what_a_lost_disk_had_sent_is_there_once_after_the_record_came_from_a_store(root: Path) -> None:
    run_dir, spool = root / "toy/0001", root / "toy/0001/metrics.jsonl"
    session(root, 0.1, {step: 10.0 - step for step in range(10)})
    lines = spool.read_bytes().splitlines(keepends=True)
    cut = next(index for index, line in enumerate(lines) if b'"step": 5' in line)
    spool.write_bytes(b"".join(lines[:cut]))  # as it was copied, while MLflow got more
    note_what_is_lost(run_dir)
    session(root, 0.1, {4: 6.0, 5: 5.0}, resumed=3)
    assert history(run_dir, "loss") == [(0, 10.0), (1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0), (5, 5.0)]
    client, new = mlflow_run(run_dir)
    assert [one.info.run_id for one in client.search_runs([new.info.experiment_id])] == [new.info.run_id]


def test_a_record_that_came_to_its_end_lost_nothing(root: Path) -> None:
    session(root, 0.1, {0: 1.0})
    before = (root / "toy/0001/metrics.jsonl").read_bytes()
    note_what_is_lost(root / "toy/0001")
    assert (root / "toy/0001/metrics.jsonl").read_bytes() == before
