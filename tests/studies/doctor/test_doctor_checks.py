"""Each check of `lrtrain doctor` on what is as it should be, and on what is not."""

import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from lrtrain.studies.doctor import disk_space, processors, this_machine
from lrtrain.studies.doctor.data_set import check_data
from lrtrain.studies.doctor.disk_space import check_disk
from lrtrain.studies.doctor.finding import Finding, carried_out, passed
from lrtrain.studies.doctor.needed_memory import check_memory
from lrtrain.studies.doctor.started_ranks import Asked, check_devices, check_launcher, check_meeting


def one(found: object) -> Finding:
    """The only finding of a check."""
    (finding,) = found  # type: ignore[misc]
    assert finding.status == "pass" or finding.advice
    return finding


def test_a_check_that_breaks_or_hangs_is_a_warning_that_says_so() -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError("by nothing")

    def hangs() -> list[Finding]:
        time.sleep(60)
        return []

    assert carried_out("well", lambda: [passed("well", "yes")], 5) == [passed("well", "yes")]
    assert "ZeroDivisionError: by nothing" in one(carried_out("broken", broken, 5)).found
    begun = time.monotonic()
    finding = one(carried_out("hangs", hangs, 0.2))
    assert (finding.check, finding.status, finding.found) == ("hangs", "warn", "no answer within 0.2 s")
    assert time.monotonic() - begun < 30


def test_versions_are_those_that_are_required() -> None:
    there = torch.__version__.partition("+")[0]
    assert one(this_machine.check_versions(["torch>=2"], {"torch": there})).status == "pass"
    assert one(this_machine.check_versions(["torch>=2"], {"torch": "1.0"})).status == "warn"
    finding = one(this_machine.check_versions(["torch>=900", "nowhere-to-be-found"], {}))
    assert finding.status == "fail"
    assert "wanted >=900" in finding.found
    assert "nowhere-to-be-found is missing" in finding.found
    assert one(this_machine.check_versions(["nothing; python_version < '3'"], {})).status == "pass"


def test_the_constraints_are_read_by_package(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# versions\ntorch==2.14.1\nnvidia-nccl-cu13==2.30.7\n")
    assert this_machine.read_constraints(tmp_path / "constraints.txt")["nvidia-nccl-cu13"] == "2.30.7"
    assert this_machine.read_constraints(tmp_path / "none") == {}


def test_where_there_is_no_gpu_it_depends_on_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update …")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    statuses = {wanted: one(processors.check_cuda(wanted)) for wanted in (True, None, False)}
    assert [finding.status for finding in statuses.values()] == ["fail", "warn", "pass"]
    assert "too old (found version 11040);" in statuses[True].found


@pytest.mark.parametrize(
    ("slower", "precision", "status"),
    [(300, "bf16-mixed", "fail"), (300, None, "warn"), (300, "32-true", "pass"), (0.2, "bf16-mixed", "pass")],
)
def test_bfloat16_in_software_is_found(
    slower: float, precision: str | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "_seconds", lambda dtype, _: slower if dtype == torch.bfloat16 else 1.0)
    assert one(processors.check_bfloat16(precision)).status == status


def test_bfloat16_is_measured_in_about_a_second() -> None:
    begun = time.monotonic()
    assert "bfloat16 takes" in one(processors.check_bfloat16("32-true")).found
    assert time.monotonic() - begun < 30


def test_a_compiler_is_one_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert one(processors.check_compiler(True)).status == "pass"
    monkeypatch.setenv("CC", "false")
    assert "cannot compile" in one(processors.check_compiler(True)).found
    monkeypatch.setenv("CC", "no-such-compiler")
    assert one(processors.check_compiler(False)).status == "warn"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert one(processors.check_compiler(True)).status == "fail"


def test_shared_memory_holds_the_batches_of_the_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(this_machine.check_shared_memory(tmp_path, 1, 0, 10**6)).status == "pass"
    assert one(this_machine.check_shared_memory(tmp_path, 2, 8, 10**15)).status == "fail"
    monkeypatch.setattr(this_machine, "SHARED", 10**18)
    assert one(this_machine.check_shared_memory(tmp_path, 2, 1, 1)).status == "warn"


def test_few_open_files_and_a_home_that_cannot_be_written_are_worth_a_word(tmp_path: Path) -> None:
    assert one(this_machine.check_open_files(256)).status == "warn"
    assert one(this_machine.check_open_files(100_000)).status == "pass"
    assert one(this_machine.check_home(tmp_path / "not/there/yet")).status == "pass"
    assert one(this_machine.check_home(Path("/dev/null/cache"))).status == "warn"


def test_the_disk_has_room_for_the_checkpoints_and_is_fast_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, speed = check_disk(tmp_path / "runs", 1e6, 3)
    assert (room.status, speed.status) == ("pass", "pass")
    assert "a checkpoint of 1MB takes" in speed.found
    assert list(tmp_path.iterdir()) == []
    full = one(check_disk(tmp_path, 1e9, 3, room=lambda _: 2 * 10**9))
    assert (full.status, "3 checkpoints of 1GB take 3GB" in full.found) == ("fail", True)
    assert one(check_disk(tmp_path, None, None, room=lambda _: 1000)).status == "fail"
    monkeypatch.setattr(disk_space, "write_speed", lambda *_: 1e6)
    slow = [*check_disk(tmp_path, 1e9, 3)][1]
    assert (slow.status, "takes 16.7 minutes" in slow.found) == ("warn", True)
    (tmp_path / "file").write_text("")
    assert "is a file" in one(check_disk(tmp_path / "file/runs", None, None)).found


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "fit"}
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "2"}


@pytest.mark.parametrize(
    ("environment", "asked", "status", "said"),
    [
        ({}, None, "pass", "starts 1 process itself"),
        ({}, Asked(2, 1), "pass", "starts 2 processes itself"),
        ({}, Asked(1, 2), "fail", "MASTER_ADDR, MASTER_PORT, NODE_RANK not set"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "0"}, Asked(1, 2), "pass", "on each of 2 nodes"),
        (TORCHRUN, Asked(2, 2), "pass", "torchrun: 2 nodes with 2 processes each"),
        (TORCHRUN, Asked(8, 1), "fail", "trainer.num_nodes 1 and trainer.devices 8"),
        (TORCHRUN, Asked(None, 2), "pass", "torchrun"),
        (SLURM | SRUN, Asked(2, 2), "pass", "Slurm job 7: 2 nodes with 2 processes each"),
        (SLURM | SRUN, Asked(4, 1), "fail", "trainer.devices 4"),
        (SLURM, None, "fail", "--ntasks 4 without --ntasks-per-node"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "2(x2)"}, Asked(2, 2), "fail", "not started by srun"),
        (SLURM | SRUN | {"SLURM_JOB_NAME": "interactive"}, None, "warn", "taken for interactive"),
    ],
)
def test_the_launcher_starts_as_many_processes_as_the_configuration_has(
    environment: dict[str, str], asked: Asked | None, status: str, said: str
) -> None:
    finding = one(check_launcher(environment, asked, gpus=0))
    assert (finding.status, said in finding.found) == (status, True), finding


def test_a_pod_says_that_it_is_one() -> None:
    _, pod = check_launcher({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "fit-0"}, None, 0)
    assert "fit-0" in pod.found


@pytest.mark.parametrize(("devices", "gpus", "status"), [(2, 2, "pass"), (8, 1, "fail"), (1, 8, "warn")])
def test_there_are_as_many_gpus_as_processes(devices: int, gpus: int, status: str) -> None:
    finding = one(check_devices({"CUDA_VISIBLE_DEVICES": "0"}, Asked(devices, 1), gpus, on_gpus=True))
    assert (finding.status, "CUDA_VISIBLE_DEVICES=0" in finding.found) == (status, True)


def test_the_meeting_place_is_this_hosts_and_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        assert one(check_meeting(here)).status == "fail"
        assert one(check_meeting(here | {"NODE_RANK": "1"})).status == "pass"
        assert one(check_meeting(here | {"TORCHELASTIC_RUN_ID": "1"})).status == "pass"
    assert "free" in one(check_meeting(here)).found
    assert "is not this host's" in one(check_meeting({"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": port})).found
    assert one(check_meeting({"MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": port})).status == "fail"
    assert one(check_meeting(here | {"MASTER_PORT": "many"})).status == "fail"
    assert [*check_meeting({})] == []
    assert "NCCL_SOCKET_IFNAME is nowhere0" in one(check_meeting({"NCCL_SOCKET_IFNAME": "nowhere0"})).found
    assert [*check_meeting({"NCCL_SOCKET_IFNAME": "^docker", "GLOO_SOCKET_IFNAME": "lo"})] == []


def test_the_data_is_there_whole_and_of_the_models_vocabulary(prepared: Path) -> None:
    path = str(prepared)
    assert one(check_data(path, False, 8, 1, None)).status == "pass"
    assert "model.decoder.vocab_size is 7" in one(check_data(path, False, 8, 1, 7)).found
    assert "blocks" in one(check_data(path, False, 8, 10**9, None)).found
    assert "holds no prepared data" in one(check_data(path + "/none", False, 8, 1, None)).found
    assert one(check_data(path + "/none", True, 8, 1, None)).status == "pass"


def test_a_shard_that_is_cut_short_is_found(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    shard = next((tmp_path / "data/train").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    finding = one(check_data(str(tmp_path / "data"), False, 8, 1, None))
    assert (finding.status, str(shard) in finding.found) == ("fail", True)


@pytest.mark.parametrize(("needed", "status"), [(50, "pass"), (95, "warn"), (101, "fail")])
def test_what_a_plan_needs_is_there(needed: float, status: str) -> None:
    assert one(check_memory(needed, 100, "a device")).status == status


def test_this_machine_tells_its_memory() -> None:
    assert 0 < this_machine.available_memory() < 1e16
