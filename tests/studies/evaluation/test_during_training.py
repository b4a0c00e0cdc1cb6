"""The callback: figures every so many steps, and a run that is bit for bit what it were without it."""

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import toy
from commandline import arguments, refusal
from forked import FORK
from lrtrain.checkpoint.directory import newest_whole
from lrtrain.checkpoint.shard_folder import read
from lrtrain.cli.main import main
from lrtrain.studies.evaluation import decoder_lm
from lrtrain.tracking.recorded import recorded
from ranks import command_on_ranks, command_to_file, torchrun_environment

EVALUATION = [
    "--trainer.callbacks+=lrtrain.studies.evaluation.Evaluation",
    "--trainer.callbacks.tasks=[sample_piqa,sample_arc_easy]",
    "--trainer.callbacks.every_n_steps=2",
]
ACC = "eval/sample_piqa/acc_norm"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def flags(shards: Path, runs: Path, *more: str, steps: int = 5) -> list[str]:
    size = ["--data.block_size=96", "--checkpoints.every_n_steps=2", "--checkpoints.keep=-1"]
    return ["fit", *arguments(shards, runs, *size, *more, steps=steps)]


def points(run: Path, metric: str) -> dict[int, float]:
    found = recorded(run)
    assert found is not None
    series = found.metrics.get(metric)
    return {} if series is None else dict(zip(series.step.tolist(), series.value.tolist(), strict=True))


def saved(run: Path, step: int) -> dict[str, Any]:
    return read(run / f"checkpoints/step-{step:08d}.ckpt")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("more", [[], ["--trainer.accumulate_grad_batches=2"]], ids=["plain", "accumulating"])
def test_training_is_bit_for_bit_the_same_with_and_without_it(shards: Path, tmp_path: Path, more: list[str]) -> None:
    for name, own in (("with", EVALUATION), ("without", [])):
        assert main(flags(shards, tmp_path / name, *own, *more)) == 0
    one, other = (tmp_path / name / "quickstart/0001" for name in ("with", "without"))
    for step in (2, 4, 5):
        a, b = saved(one, step), saved(other, step)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            assert same(a[part], b[part]), f"{part} at step {step}"
        assert same(a["lrtrain"]["rng"], b["lrtrain"]["rng"])
    for metric in ("train/loss", "val/loss"):
        assert points(one, metric) == points(other, metric)
    assert list(points(one, ACC)) == [2, 4, 5]
    assert not points(other, ACC)


def test_its_figures_are_those_that_the_command_finds_for_the_checkpoint(shards: Path, tmp_path: Path) -> None:
    assert main(flags(shards, tmp_path, *EVALUATION, "--trainer.callbacks.limit=6")) == 0
    run = tmp_path / "quickstart/0001"
    during = points(run, "eval/sample_piqa/first-6/acc_norm")
    for step in (2, 5):
        checkpoint = run / f"checkpoints/step-{step:08d}.ckpt"
        assert main(["evaluate", str(checkpoint), "--tasks", "sample_piqa", "--limit", "6"]) == 0
    assert points(run, "eval/sample_piqa/first-6/acc_norm") == during


def test_its_time_is_not_time_in_training(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = decoder_lm.score

    def slow(*arguments: Any) -> Any:
        time.sleep(0.4)
        return score(*arguments)

    monkeypatch.setattr(decoder_lm, "score", slow)
    assert main(flags(shards, tmp_path, *EVALUATION, "--trainer.limit_val_batches=0")) == 0
    run = tmp_path / "quickstart/0001"
    spent = sum(points(run, "eval/seconds").values())
    assert spent > 3 * 2 * 0.4
    assert max(points(run, "throughput/seconds").values()) < 0.5 * spent


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_all_processes_share_the_work_and_find_the_same(strategy: str, shards: Path, tmp_path: Path) -> None:
    share = ["--config", f"parallel/{strategy}", "--trainer.devices=2", "--data.batch_size=2"]
    share.append("--trainer.accumulate_grad_batches=1")
    (code, _, err), _ = command_on_ranks(2, flags(shards, tmp_path / "two", *share, *EVALUATION, steps=3))
    assert code == 0, err
    assert main(flags(shards, tmp_path / "one", *EVALUATION, steps=3)) == 0
    one, two = (tmp_path / name / "quickstart/0001" for name in ("one", "two"))
    for metric in (ACC, f"{ACC}_stderr", "eval/sample_arc_easy/acc"):
        assert points(two, metric) == points(one, metric)
        assert list(points(two, metric)) == [2, 3]


# What goes wrong


class Failing:
    """Stands in for the scores of a batch: fails at the second evaluation."""

    def __init__(self) -> None:
        self.calls = 0
        self.score = decoder_lm.score

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls > 4:
            raise RuntimeError("the test's out of memory")
        return self.score(*arguments)


def test_a_failed_evaluation_is_warned_of_and_recorded_and_training_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_lm, "score", Failing())
    with pytest.warns(
        UserWarning, match=r"evaluation at step 4 failed, and training goes on: RuntimeError: the test's"
    ):
        assert main(flags(shards, tmp_path, *EVALUATION)) == 0
    run = tmp_path / "quickstart/0001"
    assert main(flags(shards, tmp_path / "without")) == 0
    ours, other = saved(run, 5), saved(tmp_path / "without/quickstart/0001", 5)
    assert all(same(ours[part], other[part]) for part in ("state_dict", "optimizer_states"))
    assert same(ours["lrtrain"]["rng"], other["lrtrain"]["rng"])
    assert points(run, "eval/failed") == {4: 1.0, 5: 1.0}
    assert list(points(run, ACC)) == [2]
    assert list(points(run, "train/loss")) == [1, 2, 3, 4, 5]


def test_one_process_of_many_that_fails_alone_ends_the_run_where_weights_are_sharded(
    shards: Path, tmp_path: Path, started: list[BaseProcess]
) -> None:
    share = ["--config", "parallel/fsdp", "--trainer.devices=2", "--data.batch_size=2"]
    alone = ["--trainer.callbacks+=lost_rank.FailAloneInEvaluation", "--trainer.callbacks.calls=3"]
    argv = flags(shards, tmp_path, *share, *EVALUATION, *alone, "--trainer.accumulate_grad_batches=1")
    files = [tmp_path / f"rank{number}.txt" for number in range(2)]
    for environment, file in zip(torchrun_environment(2), files, strict=True):
        started.append(FORK.Process(target=command_to_file, args=(argv, environment, file)))
        started[-1].start()
    for process in started:
        process.join(100)
    said = [file.read_text() for file in files]
    assert [process.exitcode for process in started] == [1, 1], said
    assert "ended with exit code 1: LoneFailureError: rank 1: RuntimeError: the test's out of memory" in said[0]
    run = tmp_path / "quickstart/0001"
    assert list(points(run, ACC)) == [2]
    assert not points(run, "eval/failed")
    path, broken = newest_whole(run / "checkpoints")
    assert (path, broken) == (run / "checkpoints/step-00000004.ckpt", [])


class Signalling:
    def __init__(self) -> None:
        self.calls = 0
        self.score = decoder_lm.score

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.score(*arguments)


def test_a_run_that_is_told_to_end_breaks_its_evaluation_off_and_repeats_it_when_it_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalling = Signalling()
    monkeypatch.setattr(decoder_lm, "score", signalling)
    ours = [*EVALUATION, "--checkpoints.every_n_steps=100"]
    with pytest.warns(UserWarning, match="the evaluation at step 2 is broken off"), pytest.raises(SystemExit) as ended:
        main(flags(shards, tmp_path, *ours))
    assert ended.value.code == 143
    assert signalling.calls == 1
    run = tmp_path / "quickstart/0001"
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    assert checkpoint.name == "step-00000003.ckpt"
    assert not points(run, ACC)


def test_a_resumed_run_does_not_repeat_what_it_has(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(flags(shards, tmp_path, *EVALUATION, steps=4)) == 0
    before = points(tmp_path / "quickstart/0001", "eval/seconds")
    assert main(flags(shards, tmp_path, *EVALUATION, "--ckpt_path=last", steps=6)) == 0
    after = points(tmp_path / "quickstart/0001", "eval/seconds")
    assert list(after) == [2, 4, 6]
    assert {step: after[step] for step in before} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trainer.callbacks.every_n_steps=0"], "every_n_steps is 0: give at least 1"),
        (["--trainer.callbacks.limit=0"], "limit is 0.0: give a number of documents"),
        (["--trainer.callbacks.num_fewshot=-1"], "num_fewshot is -1: give at least 0"),
        (["--trainer.callbacks.include_path=nowhere"], "--include-path nowhere: no such folder"),
        (["--data=test_during_training.Own"], "test_during_training.Own has no tokenizer_json(), and tasks are texts"),
    ],
    ids=["steps", "limit", "shots", "folder", "data"],
)
def test_a_wrong_setting_ends_the_run_before_its_first_step(
    more: list[str], said: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if more[0].startswith("--data"):
        argv = [
            "fit",
            "--config",
            "quickstart",
            *toy.MODEL,
            *toy.TRAINER,
            "--trainer.max_steps=2",
            f"--runs={tmp_path}",
        ]
        argv += ["--trainer.logger=false", "--trainer.val_check_interval=2"]
    else:
        argv = flags(shards, tmp_path)
    assert said in refusal([*argv, *EVALUATION, *more], capsys)
    assert not list(tmp_path.rglob("*.ckpt"))


class Own(L.LightningDataModule):
    """Batches of random tokens, and nothing that tells of texts."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.randint(300, (64, 97)), batch_size=4)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return self.train_dataloader()
