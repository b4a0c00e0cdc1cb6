"""Two hosts, one of which is cut off or dies in mid-step: the other ends in time, and the pair goes on exactly."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import toy
from checkpoint_state import differences
from commandline import RECIPE, arguments
from lrtrain.checkpoint import shard_folder
from lrtrain.checkpoint.directory import newest_whole, steps_in
from two_hosts import ADDRESSES, TwoHosts, ended, two_hosts

pytestmark = pytest.mark.cluster

STEPS, EVERY = 300, 10
TIMEOUT = 15
"""Seconds that a collective waits."""
IN_TIME = TIMEOUT + 75
"""Seconds in which what is left must have ended: the timeout, the roll call, and a machine with other work."""
PORT = "29511"
STRATEGIES = {
    "fsdp": [
        "--config",
        str(RECIPE.parent / "parallel/fsdp.yaml"),
        f"--trainer.strategy.timeout_minutes={TIMEOUT / 60}",
    ],
    "ddp": ["--config", str(RECIPE.parent / "parallel/ddp.yaml"), f"--trainer.strategy.timeout=0:00:{TIMEOUT}"],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as both:
        yield both


@pytest.fixture(scope="module", params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(strategy: str, hosts: TwoHosts, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a pair that nothing disturbed."""
    folder = tmp_path_factory.mktemp(strategy)
    for host, process in enumerate(start(hosts, "torchrun", strategy, shards, folder)):
        assert process.wait(300) == 0, output(folder, host)
    return last(folder)


@pytest.mark.parametrize(
    ("launcher", "way"), [("torchrun", "cut off"), ("torchrun", "processes killed"), ("lightning", "dead")]
)
def test_the_other_host_ends_in_time_and_the_pair_goes_on_exactly(
    launcher: str, way: str, strategy: str, whole: Path, hosts: TwoHosts, shards: Path, tmp_path: Path
) -> None:
    pair = start(hosts, launcher, strategy, shards, tmp_path)
    wait_for_step(tmp_path, 2 * EVERY, pair)
    if way != "processes killed":
        hosts.cut()
    if way != "cut off":
        hosts.kill(1)
    try:
        for host, process in enumerate(pair[: 2 if way == "cut off" else 1]):
            code, _ = ended(process, IN_TIME)
            assert code == {"torchrun": 1, "lightning": 75}[launcher], output(tmp_path, host)  # torchrun has only 1
            lines = [line for line in output(tmp_path, host).splitlines() if line.startswith("lrtrain: error: ")]
            assert len(lines) == 1, output(tmp_path, host)
            assert f"rank {1 - host} " in lines[0]
            assert "does not answer" in lines[0]
            assert f"restart with --ckpt_path last, from {newest(tmp_path)}" in lines[0]
            if launcher == "torchrun":
                assert "exitcode  : 75" in output(tmp_path, host)
    finally:
        hosts.mend()
        hosts.kill(0)
        hosts.kill(1)
    for host, process in enumerate(start(hosts, launcher, strategy, shards, tmp_path, "--ckpt_path=last")):
        assert process.wait(300) == 0, output(tmp_path, host)
    assert [path.name for path in (tmp_path / "runs/quickstart").iterdir()] == ["0001"]
    here, there = (shard_folder.read(path) for path in (last(tmp_path), whole))
    assert here["lrtrain"].keys() == there["lrtrain"].keys()
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(here[key], there[key]) == []
    if "random state not restored: saved by 1 ranks" not in output(tmp_path, 0):  # by the first process alone (DDP)
        assert differences(here["lrtrain"]["rng"], there["lrtrain"]["rng"]) == []
    assert here["loops"]["fit_loop"]["state_dict"] == there["loops"]["fit_loop"]["state_dict"]


def start(
    hosts: TwoHosts, launcher: str, strategy: str, shards: Path, folder: Path, *more: str
) -> list["subprocess.Popen[bytes]"]:
    """The same fit on both hosts, a process on each."""
    fit = ["lrtrain", "fit", *arguments(shards, folder / "runs", *STRATEGIES[strategy], steps=STEPS)]
    fit += ["--trainer.devices=1", "--trainer.num_nodes=2", f"--checkpoints.every_n_steps={EVERY}"]
    fit += ["--trainer.val_check_interval=40", *more]
    started = []
    for host in range(2):
        environment = {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *fit]
        if launcher == "torchrun":
            at = [f"--node-rank={host}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"]
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", *at, "-m", *fit]
        else:
            environment |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT, "NODE_RANK": str(host)}
        started.append(hosts.start(host, command, folder / f"host{host}.txt", environment))
    return started


def wait_for_step(folder: Path, step: int, pair: list["subprocess.Popen[bytes]"]) -> None:
    deadline = time.monotonic() + 200
    while newest(folder) is None or int(str(newest(folder))[-13:-5]) < step:
        assert all(process.poll() is None for process in pair), output(folder, 0) + output(folder, 1)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest(folder: Path) -> Path | None:
    return next(iter(steps_in(folder / "runs/quickstart/0001/checkpoints").values()), None)


def last(folder: Path) -> Path:
    path, broken = newest_whole(folder / "runs/quickstart/0001/checkpoints")
    assert path is not None
    assert path.name == f"step-{STEPS:08d}.ckpt"
    assert broken == []
    return path


def output(folder: Path, host: int) -> str:
    return (folder / f"host{host}.txt").read_text()
