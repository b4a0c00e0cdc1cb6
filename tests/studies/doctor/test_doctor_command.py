"""`lrtrain doctor` as a user runs it: alone, with a configuration, in a job."""

import json
from pathlib import Path

import pytest

import toy
from commandline import RECIPE
from lrtrain.cli.main import main


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "SLURM_JOB_ID", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def configured(shards: Path, runs: Path, *more: str) -> list[str]:
    return ["doctor", "--config", str(RECIPE), *toy.flags(shards, runs), *more]


def rows(argv: list[str], capsys: pytest.CaptureFixture[str], code: int) -> dict[str, tuple[str, str]]:
    """Check -> status and what was found."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    said = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    return {finding["check"]: (finding["status"], finding["found"]) for finding in said["findings"]}


def test_alone_it_looks_at_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("check")
    assert out.splitlines()[-1].endswith(" 0 failed")
    assert "bfloat16" in out
    assert [*tmp_path.iterdir()] == []


def test_a_run_that_would_work_has_no_failure(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(configured(shards, tmp_path / "runs"), capsys, 0)
    assert found["data"][0] == found["memory"][0] == found["disk"][0] == "pass"
    assert "a checkpoint of" in found["disk speed"][1]
    assert "not asked for" in found["CUDA"][1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "check", "said"),
    [
        (["--data.path=/nowhere"], "data", "holds no prepared data"),
        (["--model.decoder.vocab_size=100"], "data", "model.decoder.vocab_size is 100"),
        (["--data.batch_size=1000000"], "memory", "a process takes about"),
        (["--trainer.num_nodes=2"], "launcher", "MASTER_ADDR, MASTER_PORT, NODE_RANK not set"),
        (["--trainer.maxsteps=3"], "configuration", "maxsteps"),
        (["--runs=/dev/null/runs"], "disk", "is a file"),
        (["--data.path=nowhere://bucket/shards"], "data", "nowhere://bucket/shards/manifest.json is no URL of a store"),
        (["--trainer.precision=int8"], "configuration", "a plan knows"),
    ],
)
def test_what_would_go_wrong_fails_with_what_to_do(
    flags: list[str], check: str, said: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = rows(configured(shards, tmp_path, *flags), capsys, 2)[check]
    assert (status, said in found) == ("fail", True), found


def test_every_data_set_of_a_mix_is_looked_at(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix = [{"path": str(shards), "weight": 1}, {"path": "/nowhere", "weight": 1}]
    argv = configured(shards, tmp_path, f"--data.mix={json.dumps(mix)}", "--data.path=null")
    assert main([*argv, "--json"]) == 2
    told = [finding for finding in json.loads(capsys.readouterr().out)["findings"] if finding["check"] == "data"]
    assert [finding["status"] for finding in told] == ["pass", "fail"]


def test_in_a_job_the_first_process_prints_and_another_host_only_what_failed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**job, "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    argv = configured(shards, tmp_path, "--trainer.devices=2", "--trainer.num_nodes=2")
    assert main(argv) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*argv, "--data.path=/nowhere"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (out, ": data: /nowhere holds no prepared data" in line) == ("", True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main([*argv, "--data.path=/nowhere"]) == 0
    assert capsys.readouterr() == ("", "")
