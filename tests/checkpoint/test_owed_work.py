"""What was due when the process of a run went is done by the next one: validation, closing record, status."""

import os
import shutil
import signal
from pathlib import Path

import pytest

import toy
from checkpoint_state import assert_same_state
from commandline import arguments
from forked import FORK
from lrtrain.cli.main import main
from run_record import points, series, statuses

STOP = "--trainer.callbacks=commandline.StopIn"
STEPS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def flags(shards: Path, runs: Path, *more: str) -> list[str]:
    """Four steps with a checkpoint and then a validation of two batches after the second and the fourth."""
    tracked = ["--trainer.logger=true", "--name=x", "--checkpoints.every_n_steps=2", "--checkpoints.asynchronous=false"]
    return ["fit", *arguments(shards, runs, *tracked, *more, steps=STEPS)]


def end(argv: list[str], hook: str, count: int, how: signal.Signals) -> None:
    """Runs a command in a process of its own that ends at the nth call of a hook."""
    stop = [STOP, f"--trainer.callbacks.hook={hook}", f"--trainer.callbacks.count={count}"]
    process = FORK.Process(target=_run, args=([*argv, *stop, f"--trainer.callbacks.signal={int(how)}"],))
    process.start()
    process.join(120)
    assert process.exitcode == (143 if how == signal.SIGTERM else -how)


def _run(argv: list[str]) -> None:
    try:
        code = main(argv)
    except SystemExit as ended:
        code = int(ended.code or 0)
    os._exit(code)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody ended."""
    runs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert main(flags(shards, runs)) == 0
    return runs / "x/0001"


@pytest.mark.parametrize(
    ("hook", "count", "how"),
    [
        ("on_validation_batch_start", 1, signal.SIGTERM),
        ("on_validation_batch_start", 1, signal.SIGKILL),
        ("on_validation_batch_start", 4, signal.SIGTERM),
        ("on_validation_batch_start", 4, signal.SIGKILL),
        ("on_train_end", 1, signal.SIGTERM),
        ("on_save_checkpoint", 2, signal.SIGKILL),
    ],
    ids=str,
)
def test_a_run_that_was_ended_has_in_the_end_all_that_one_has_which_was_not(
    hook: str,
    count: int,
    how: signal.Signals,
    whole: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    argv = flags(shards, tmp_path)
    end(argv, hook, count, how)
    assert main([*argv, "--ckpt_path=last"]) == 0
    run = tmp_path / "x/0001"
    assert points(run) == points(whole)
    assert [step for step, _ in series(run, "val/loss")] == [2, 4]
    assert statuses(run)[-1] == "FINISHED"
    newest = f"checkpoints/step-{STEPS:08d}.ckpt"
    assert_same_state(run / newest, whole / newest)

    record = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main([*argv, "--ckpt_path=last"]) == 0
    assert f"step {STEPS} is the last one already: raise trainer.max_steps to go on" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == record


def test_the_status_is_closed_where_there_is_nothing_to_validate(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    argv = flags(shards, tmp_path, "--trainer.limit_val_batches=0")
    end(argv, "on_train_end", 1, signal.SIGTERM)
    assert statuses(tmp_path / "x/0001") == ["RUNNING", "KILLED"]
    assert main([*argv, "--ckpt_path=last"]) == 0
    assert statuses(tmp_path / "x/0001") == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]


def test_a_record_that_is_gone_is_begun_anew_with_the_end_of_the_run(
    whole: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = Path(shutil.copytree(whole, tmp_path / "x/0001"))
    (run / "metrics.jsonl").unlink()
    assert main([*flags(shards, tmp_path), "--ckpt_path=last"]) == 0
    assert series(run, "val/loss") == series(whole, "val/loss")[-1:]
    assert statuses(run) == ["RUNNING", "FINISHED"]


def test_a_branch_without_a_step_is_no_run(
    whole: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = f"--ckpt_path={whole}/checkpoints/step-{STEPS:08d}.ckpt"
    assert main([*flags(shards, tmp_path), "--name=branch", start]) == 0
    assert f"step {STEPS} is the last one already: raise trainer.max_steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_was_counted_after_the_step_that_is_saved_is_not_counted_twice(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    argv = flags(shards, tmp_path, "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=3")
    end(argv, "on_validation_batch_start", 1, signal.SIGTERM)  # after the third micro-batch, half of the second step
    assert main([*argv, "--ckpt_path=last"]) == 0
    seen = dict(series(tmp_path / "x/0001", "throughput/tokens_seen"))
    assert seen == {step: step * 2 * 4 * toy.BLOCK for step in range(1, STEPS + 1)}
