"""Checkpoints in a store (S3 by moto): whole, found on an empty disk, kept through outages, never another run's."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import s3_server
import step_actions
import toy
from checkpoint_state import assert_same_state
from commandline import RECIPE, arguments, refusal
from forked import FORK
from lrtrain.checkpoint import remote_runs
from lrtrain.checkpoint.uploads import Uploads
from lrtrain.cli.main import main
from lrtrain.runtime import stores
from lrtrain.tracking.delivery import load_state
from ranks import command_on_ranks
from run_record import points, statuses
from tracked import history, make_database, mlflow_run, until

ACTING = "--trainer.callbacks=step_actions.Acting"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _environment(server: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "20")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield
    step_actions.ACTIONS.clear()


@pytest.fixture
def store(request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{request.node.name}/runs"


def fit(shards: Path, store: str | None, *more: str, steps: int = 6, command: str = "fit") -> list[str]:
    where = [f"--checkpoints.path={store}"] if store is not None else []
    every = ["--checkpoints.every_n_steps=2"]
    return [command, *arguments(shards, Path("runs"), *where, *every, *more, steps=steps)]


def checkpoints(store: str, run: str = "quickstart/0001") -> list[str]:
    return sorted(name.removeprefix("checkpoints/") for name in stores.stored(f"{store}/{run}") if "step-" in name)


def step(number: int) -> str:
    return f"step-{number:08d}.ckpt"


def test_a_run_goes_on_from_an_empty_disk_as_if_it_had_not_been_lost(
    shards: Path, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = [ACTING, "--checkpoints.keep=1"]
    step_actions.ACTIONS[3] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main(fit(shards, store, *stopped))
    assert caught.value.code == 143
    assert checkpoints(store) == [step(4)]  # the step that was running when the signal came is done
    shutil.rmtree("runs")
    assert main(fit(shards, store, "--ckpt_path=last")) == 0
    assert "resuming from runs/quickstart/0001/checkpoints/step-00000004.ckpt" in capfd.readouterr().out
    assert checkpoints(store) == [step(4), step(6)]
    assert set(remote_runs.RECORD) - {"mlflow.json"} <= {*stores.stored(f"{store}/quickstart/0001")}
    record = Path("runs/quickstart/0001/metrics.jsonl").read_bytes()
    assert stores.read(f"{store}/quickstart/0001/metrics.jsonl") == record
    assert statuses(Path("runs/quickstart/0001")) == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert main(fit(shards, None, "--name=whole")) == 0
    assert points(Path("runs/quickstart/0001")) == points(Path("runs/whole/0001"))
    assert_same_state(*(Path(f"runs/{name}/0001/checkpoints/{step(6)}") for name in ("quickstart", "whole")))


@pytest.mark.slow
def test_after_a_kill_whose_disk_is_lost_mlflow_has_every_point_once(
    shards: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{make_database(tmp_path)}")
    process = FORK.Process(target=_killed_at_step_five, args=(fit(shards, store, ACTING, "--trainer.logger=true"),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    sent = [step for step, _ in history(Path("runs/quickstart/0001"), "train/loss")]
    assert sent == [1, 2, 3, 4, 5]
    shutil.rmtree("runs")
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "20")
    assert main(fit(shards, store, "--trainer.logger=true", "--ckpt_path=last")) == 0
    assert main(fit(shards, None, "--trainer.logger=true", "--name=whole")) == 0
    for metric in ("train/loss", "val/loss"):
        once = history(Path("runs/whole/0001"), metric)
        assert history(Path("runs/quickstart/0001"), metric) == once
    client, run = mlflow_run(Path("runs/quickstart/0001"))
    assert [one.info.run_id for one in client.search_runs([run.info.experiment_id])] == [run.info.run_id]


def _killed_at_step_five(argv: list[str]) -> None:
    run = Path("runs/quickstart/0001")

    def kill() -> None:
        store = next(flag.partition("=")[2] for flag in argv if flag.startswith("--checkpoints.path="))
        url = f"{store}/quickstart/0001/checkpoints/{step(4)}"
        until(lambda: stores.exists(url), 90)
        size = (run / "metrics.jsonl").stat().st_size
        until(lambda: (state := load_state(run)) is not None and state.delivered == size, 90)
        os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    step_actions.ACTIONS[5] = kill
    sys.exit(main(argv))


def test_a_new_run_on_an_empty_disk_takes_a_number_that_no_run_has_in_the_store(shards: Path, store: str) -> None:
    for expected in ("0001", "0002"):
        assert main(fit(shards, store, steps=2)) == 0
        assert os.listdir("runs/quickstart") == [expected]
        shutil.rmtree("runs")
    assert main(fit(shards, None, steps=2)) == 0  # another disk's 0001, which knows nothing of the store
    assert main(fit(shards, store, "--ckpt_path=runs/quickstart/0001/checkpoints/step-00000002.ckpt", steps=4)) == 0
    assert checkpoints(store, "quickstart/0003") == [step(4)]
    assert checkpoints(store) == [step(2)]


def test_a_run_that_is_refused_gives_its_number_back(
    shards: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(fit(shards, store, "--trainer.callbacks=commandline.Nothing"), capsys)
    assert "has no Nothing" in line
    refusal(fit(shards, store, "--model.decoder.vocab_size=100"), capsys)
    assert stores.stored(store) == {}
    assert not Path("runs/quickstart").exists()


def test_last_takes_the_newest_whole_one_wherever_it_is(
    shards: Path, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(fit(shards, store)) == 0
    here = Path("runs/quickstart/0001/checkpoints")
    last = fit(shards, store, "--ckpt_path=last", command="validate")
    capfd.readouterr()
    assert main(last) == 0
    assert "downloading" not in capfd.readouterr().err
    os.truncate(here / step(6), 1000)  # broken here, whole there
    assert main(last) == 0
    told = capfd.readouterr()
    assert f"downloading {store}/quickstart/0001/checkpoints/{step(6)}" in told.err
    assert f"checkpoint {here / step(6)}" in told.out
    stores.write(f"{store}/quickstart/0001/checkpoints/{step(6)}", b"no checkpoint")
    os.truncate(here / step(6), 1000)
    assert main(last) == 0
    assert f"checkpoint {here / step(4)}" in capfd.readouterr().out


def test_a_checkpoint_is_named_by_its_url(shards: Path, store: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(fit(shards, store)) == 0
    shutil.rmtree("runs")
    url = f"{store}/quickstart/0001/checkpoints/{step(4)}"
    assert main(fit(shards, None, f"--ckpt_path={url}", command="validate")) == 0
    for what in (url, f"{store}/quickstart/0001", store):
        assert main(["generate", what, "--prompt=step", "--max-new-tokens=2"]) == 0
    assert main(["export", store, "--out", "exported"]) == 0
    assert f"| {step(6)}, sha256 " in Path("exported/README.md").read_text()
    assert not Path("runs").exists()
    capfd.readouterr()
    assert main(fit(shards, store, f"--ckpt_path={url}", steps=5)) == 0  # the run goes on, from an earlier step
    assert f"{step(6)} is ahead of step 4: set aside there" in capfd.readouterr().out
    assert checkpoints(store) == [step(4), step(5), step(6), f"{step(6)}.aside"]
    shutil.rmtree("runs")
    assert main(fit(shards, store, "--ckpt_path=last", command="validate")) == 0
    assert step(5) in capfd.readouterr().out
    assert main(fit(shards, store, f"--ckpt_path={store}/x/{step(4)}", command="validate")) == 2
    assert "there is no checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("path", "variables", "line"),
    [
        ("s3://none/runs", {}, "there is no such bucket"),
        ("s3://bucket/runs", {"AWS_ACCESS_KEY_ID": None}, "no credentials: set AWS_ACCESS_KEY_ID"),
        ("runs/there", {}, "checkpoints.path is runs/there: give the URL of a store"),
        ("nosuch://a", {}, "nosuch://a/quickstart is no URL"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_before_anything_begins(
    path: str,
    variables: dict[str, Any],
    line: str,
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in variables:
        monkeypatch.delenv(name)
    assert line in refusal(fit(shards, path), capsys)
    assert not Path("runs").exists()


def test_a_store_that_is_away_stops_no_step_and_gets_the_next_checkpoint(
    shards: Path, store: str, server: s3_server.S3Server, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    step_actions.ACTIONS |= {1: server.stop, 5: lambda: threading.Timer(2.0, server.start).start()}
    assert main(fit(shards, store, ACTING)) == 0
    assert "trying again in" in capfd.readouterr().err
    assert step(6) in checkpoints(store)
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "1")
    step_actions.ACTIONS[7] = server.stop
    try:
        assert main(fit(shards, store, ACTING, "--ckpt_path=last", steps=9)) == 75
    finally:
        server.start()
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"lrtrain: error: {store}/quickstart/0001 lacks the end of this run: ")
    assert f"it is in runs/quickstart/0001/checkpoints/{step(9)}" in last
    assert Path(f"runs/quickstart/0001/checkpoints/{step(9)}").is_file()
    assert main(fit(shards, store, "--ckpt_path=last", steps=9)) == 0  # started again, nothing is left to train
    assert step(9) in checkpoints(store)


def test_what_is_being_copied_is_not_removed_here_and_the_newest_goes_next(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / step(number) for number in (1, 2, 3)]
    for file in files:
        file.write_bytes(b"x")
    go, sent, upload = threading.Event(), [], stores.upload

    def held(file: Path, url: str) -> None:
        sent.append(file)
        assert go.wait(30)
        upload(file, url)

    monkeypatch.setattr(stores, "upload", held)
    uploads = Uploads(tmp_path, f"{store}/x/0001", 1, lambda: asked.append(uploads.needed))
    asked: list[set[Path]] = []
    for number, file in enumerate(files, start=1):
        uploads.offer(number, file)
    until(lambda: sent)
    assert uploads.needed == {files[0], files[2]}
    go.set()
    until(lambda: len(asked) == 2)
    uploads.offer(4, files[0])
    uploads.finish()
    assert sent == [files[0], files[2], files[0]]
    assert asked == [{files[2]}, set(), set()]
    assert checkpoints(store, "x/0001") == [step(4)]


def test_of_two_processes_that_go_on_with_a_run_the_one_that_began_later_has_the_copy(
    shards: Path, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Uploads(Path("elsewhere"), f"{store}/quickstart/0001", 2, lambda: None)
    step_actions.ACTIONS[3] = lambda: (until(lambda: step(2) in checkpoints(store)), other.begin(2))
    assert main(fit(shards, store, ACTING)) == 2
    told = capfd.readouterr().err.splitlines()
    assert "another process, on " in told[-1]
    assert "has taken its copy over; it is in runs/quickstart/0001/checkpoints/step-00000006.ckpt" in told[-1]
    assert checkpoints(store) == [step(2)]


def test_the_shards_of_several_processes_go_there_and_come_back(shards: Path, store: str) -> None:
    fsdp = ["--config", str(RECIPE.parent / "parallel/fsdp.yaml"), "--checkpoints.keep=1"]
    outcomes = command_on_ranks(2, fit(shards, store, *fsdp, steps=4))
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert {name.partition("/")[0] for name in checkpoints(store)} == {step(4)}
    shutil.rmtree("runs")
    assert main(fit(shards, store, "--ckpt_path=last", command="validate")) == 0
    assert Path(f"runs/quickstart/0001/checkpoints/{step(4)}/meta.pt").is_file()
