"""The command line of the JobSet on two nodes of one process each: as its pods run it, on one machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import toy
from commandline import RECIPE
from lrtrain.checkpoint.directory import newest_whole, steps_in
from manifests import command_line, training_pod
from ranks import free_port

FOLDER = "overlays/several-nodes"
PATIENCE = 240.0
SMALLER = ["--trainer.devices=1", "--trainer.strategy.shards=2", "--trainer.strategy.replicas=1"]
"""What a pod of one process has in place of 8 GPUs, over what the manifest says."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Pods:
    """The pods of one start of a JobSet: a process, a heartbeat and a log each."""

    def __init__(self, folder: Path, shards: Path, steps: int) -> None:
        self.folder, self.port = folder, str(free_port())
        self.arguments = command_line(FOLDER, RUN_NAME="pretraining")
        self.smaller = ["--config", str(RECIPE), *toy.flags(shards, folder / "runs", steps), *SMALLER]
        self.smaller += ["--trainer.logger=false", "--checkpoints.path=null", "--trainer.limit_val_batches=1"]
        self.smaller += ["--checkpoints.every_n_steps=7", "--checkpoints.keep=9"]
        self.smaller += ["--name=pretraining"]  # after the recipe, which names one
        self.started = [self._start(rank) for rank in range(2)]

    def heartbeat(self, rank: int) -> Path:
        return self.folder / f"pod{rank}" / "heartbeat"

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        names = {variable["name"] for variable in training_pod(FOLDER)["containers"][0]["env"]}
        assert names == {"RUN_NAME", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "MLFLOW_TRACKING_URI"}
        nodes = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port, "NODE_RANK": str(rank)}
        arguments = [a.replace("/tmp/heartbeat", str(self.heartbeat(rank))) for a in self.arguments]
        log = (self.folder / f"node{rank}.log").open("ab")
        command = [sys.executable, "-P", "-m", "lrtrain", *arguments, *self.smaller]
        environment = {**os.environ, **nodes, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def wait_until(self, what: str, is_so: object) -> None:
        end = time.monotonic() + PATIENCE
        while not is_so():  # type: ignore[operator]
            assert [process.poll() for process in self.started] == [None, None], self.said()
            assert time.monotonic() < end, f"{what}: {self.said()}"
            time.sleep(0.1)

    def ended(self) -> list[int]:
        return [process.wait(PATIENCE) for process in self.started]

    def said(self) -> str:
        return "\n".join((self.folder / f"node{rank}.log").read_text()[-2000:] for rank in range(2))


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[list[Pods]]:
    made: list[Pods] = []
    yield made
    for process in [process for one in made for process in one.started]:
        process.kill()


def test_a_drained_pod_ends_all_with_a_checkpoint_and_all_go_on_from_it(tmp_path: Path, pods: list[Pods]) -> None:
    shards = toy.shards(tmp_path)
    checkpoints = tmp_path / "runs/pretraining/0001/checkpoints"
    pods.append(first := Pods(tmp_path, shards, 100_000))
    first.wait_until("the first checkpoint", lambda: checkpoints.is_dir() and steps_in(checkpoints))
    assert all(first.heartbeat(rank).exists() for rank in range(2))
    before = max(steps_in(checkpoints))
    first.started[1].send_signal(signal.SIGTERM)
    assert first.ended() == [143, 143], first.said()
    newest, broken = newest_whole(checkpoints)
    assert newest is not None
    assert not broken
    step = max(steps_in(checkpoints))
    assert step > before

    pods.append(second := Pods(tmp_path, shards, step + 2))
    assert second.ended() == [0, 0], second.said()
    assert f"resuming from runs/pretraining/0001/checkpoints/{newest.name}" in second.said().replace(f"{tmp_path}/", "")
    assert max(steps_in(checkpoints)) == step + 2
    assert [path.name for path in (tmp_path / "runs/pretraining").iterdir()] == ["0001"]


def test_a_pod_that_hangs_lets_the_heartbeats_of_all_grow_old_and_a_mistake_ends_all_with_2(
    tmp_path: Path, pods: list[Pods]
) -> None:
    shards = toy.shards(tmp_path)
    pods.append(hanging := Pods(tmp_path, shards, 100_000))
    hanging.wait_until("both train", lambda: all(hanging.heartbeat(rank).exists() for rank in range(2)))
    hanging.started[1].send_signal(signal.SIGSTOP)
    time.sleep(12)
    for rank in range(2):
        assert time.time() - hanging.heartbeat(rank).stat().st_mtime > 5
    hanging.started[1].send_signal(signal.SIGCONT)
    hanging.wait_until("alive again", lambda: time.time() - hanging.heartbeat(0).stat().st_mtime < 3)
    for process in hanging.started:
        process.kill()

    pods.append(mistaken := Pods(tmp_path, tmp_path / "nowhere", 10))
    assert mistaken.ended() == [2, 2], mistaken.said()
