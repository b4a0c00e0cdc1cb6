"""The tracking spool, its delivery to MLflow's own database, and `lrtrain sync`; servers: test_tracking_server.py."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lrtrain.commands import sync
from lrtrain.errors import UserError
from lrtrain.tracking import sender
from lrtrain.tracking.delivery import Delivery, load_state
from lrtrain.tracking.destination import connect, quiet, redact, resolve_uri
from lrtrain.tracking.logger import MLflowLogger, rank_zero_only
from lrtrain.tracking.names import flatten, legal_name
from lrtrain.tracking.provenance import git_state
from lrtrain.tracking.spool import Spool, SpoolBusyError, records

quiet()
LONG = "".join(f"pattern-{number}," for number in range(2000))  # 24 890 characters: four parts and more than any limit


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database, made once: making one takes seconds."""
    root = tmp_path_factory.mktemp("database")
    connect(f"sqlite:///{root}/mlflow.db", root)
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "INTERVAL", 0.05)
    shutil.copy(database, tmp_path / "mlflow.db")
    return tmp_path


def make_logger(root: Path, run: str = "toy/0001", **options: Any) -> MLflowLogger:
    return MLflowLogger(root=str(root), run_dir=str(root / run), **options)


def mlflow_run(run_dir: Path, uri: str | None = None) -> tuple[Any, Any]:
    """The client and the run that a run directory was delivered to."""
    from mlflow import MlflowClient

    state = load_state(run_dir)
    assert state is not None
    client = MlflowClient(uri or state.tracking_uri)
    return client, client.get_run(state.run_id)


def history(run_dir: Path, key: str) -> list[tuple[int, float]]:
    client, run = mlflow_run(run_dir)
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


class Model(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = super().training_step(batch, batch_idx)
        self.log("train/loss", out["loss"])
        return out


def trainer(root: Path, logger: MLflowLogger, **options: Any) -> L.Trainer:
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(
        default_root_dir=root, accelerator="cpu", logger=logger, log_every_n_steps=1, **{**silent, **options}
    )


# The spool


def test_a_record_is_one_line_of_strict_json_with_its_time_in_milliseconds(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"step": 3, "metrics": {"a": 0.1, "b": math.nan, "c": math.inf, "d": -math.inf}})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (line,) = spool.path.read_text().splitlines()
    record = json.loads(line, parse_constant=refuse)
    assert record["metrics"] == {"a": 0.1, "b": "NaN", "c": "Infinity", "d": "-Infinity"}
    assert abs(record["time"] - time.time() * 1000) < 60_000


def test_a_line_that_a_crash_cut_short_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"step": 1, "metrics": {"a": 1.0}})
    spool.close()
    with open(spool.path, "a") as file:
        file.write('{"time": 1, "step": 2, "metr')
    assert [record["step"] for _, record in records(spool.path)] == [1]
    spool = Spool(tmp_path)
    spool.append({"step": 2, "metrics": {"a": 2.0}})
    assert [record["step"] for _, record in records(spool.path)] == [1, 2]


def test_a_full_disk_is_one_line_and_leaves_no_half_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"step": 1, "metrics": {"a": 1.0}})
    before, limits = spool.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: .*free some space"):
            spool.append({"step": 2, "metrics": {"a": 2.0}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert spool.path.read_bytes() == before
    spool.append({"step": 2, "metrics": {"a": 2.0}})
    assert [record["step"] for _, record in records(spool.path)] == [1, 2]


def test_a_run_directory_has_one_owner(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(SpoolBusyError, match="in use by another process"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"time": 1, "status": "RUNNING"}\nrubbish\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: the line at byte 33 is damaged"):
        Spool(tmp_path)


# Names, parameters, tracking URIs


@given(st.text(max_size=400))
@settings(max_examples=100, deadline=None)
def test_a_legal_name_is_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name, _validate_param_name

    legal = legal_name(name)
    _validate_metric_name(legal)
    _validate_param_name(legal + "/part99")
    assert 0 < len(legal) <= MAX_ENTITY_KEY_LENGTH - len("/99/part9")
    assert legal_name(legal) == legal


def test_a_configuration_is_flattened_without_losing_anything() -> None:
    tree = {
        "model": {"rank": 64, "bias": False, "name": None, "betas": [0.9, 0.95], "extra": {}},
        "trainer": {"callbacks": [{"class_path": "a.B", "init_args": {"every": 2}}, {"class_path": "c.D"}]},
        "text": "as it is",
    }
    assert flatten(tree) == {
        "model.rank": "64",
        "model.bias": "false",
        "model.name": "null",
        "model.betas": "[0.9, 0.95]",
        "model.extra": "{}",
        "trainer.callbacks.0.class_path": "a.B",
        "trainer.callbacks.0.init_args.every": "2",
        "trainer.callbacks.1.class_path": "c.D",
        "text": "as it is",
    }


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("htp://server:5000", "unknown scheme 'htp'"),
        ("runs/mlruns", "is a folder"),
        ("file:///tmp/mlruns", "is a folder"),
        ("http://", "names no host"),
        ("http://server:port", "is no URI"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_wrong_tracking_uri_is_refused_at_start(uri: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"tracking_uri .*{complaint}.*: give http"):
        MLflowLogger(tracking_uri=uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI .*{complaint}"):
        MLflowLogger()


def test_the_tracking_uri_is_the_argument_else_the_environment_else_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri("https://other", tmp_path) == "https://other"
    assert resolve_uri(None, tmp_path) == "http://server:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///a/b.db", "runs") == f"sqlite:///{tmp_path}/a/b.db"


def test_a_password_is_neither_kept_nor_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "http://me:sesame@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    spool = Spool(tmp_path)
    spool.start("a", "b")
    spool.close()
    delivery = Delivery(tmp_path, secret)
    with pytest.raises(Exception, match="refused") as caught:
        delivery.send()
    assert "sesame" not in delivery.reason(caught.value)
    assert "sesame" not in delivery.reason(ValueError(f"cannot reach {secret}"))
    delivery.register()
    assert "sesame" not in (tmp_path / "mlflow.json").read_text()
    assert sync._tracked_at(tmp_path) == secret
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=r"needs the password of http://me:\*\*\*@127\.0\.0\.1:9"):
        sync._tracked_at(tmp_path)
    assert redact("sqlite:////a@b.db") == "sqlite:////a@b.db"


# Provenance


def test_the_commit_and_whether_the_tree_is_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    monkeypatch.chdir(tmp_path)
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    assert git_state() == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "new.py").touch()
    assert git_state()["dirty"] is True


# A run in MLflow's own database


def test_a_run_with_the_defaults_is_whole_in_sqlite_and_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    logger = MLflowLogger(tags={"team": "low rank"}, run_dir="runs/toy/0001")
    logger.log_config("model: {}\n", {"model": {"rank": 64, "patterns": LONG}})
    logger.log_manifest({"vocab_size": 4096, "splits": {"train": {"tokens": 10}}, "source": ["a", "b"]})
    logger.log_provenance()
    trainer(tmp_path, logger, max_steps=5, limit_val_batches=1).fit(Model())

    assert sorted(path.name for path in Path("runs").iterdir()) == ["artifacts", "mlflow.db", "toy"]
    _, run = mlflow_run(Path("runs/toy/0001"), "sqlite:///runs/mlflow.db")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "toy/0001")
    assert run.info.run_id == logger.version
    params = run.data.params
    assert params["model.rank"] == "64"
    assert (params["manifest.vocab_size"], params["manifest.splits.train.tokens"]) == ("4096", "10")
    parts = [params["model.patterns"]] + [params[f"model.patterns/part{part}"] for part in range(2, 6)]
    assert "".join(parts) == LONG
    tags = run.data.tags
    assert (tags["team"], tags["versions.torch"]) == ("low rank", torch.__version__.split("+")[0])
    assert int(tags["hardware.cores"]) >= 1
    assert tags["git.dirty"] in ("true", "false", "null")
    assert [step for step, _ in history(Path("runs/toy/0001"), "train/loss")] == [0, 1, 2, 3, 4]
    artifacts = tmp_path / "runs/artifacts" / run.info.run_id / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == ["config.yaml", "data_manifest.json", "provenance.json"]
    assert json.loads((artifacts / "data_manifest.json").read_text())["source"] == ["a", "b"]
    printed = capfd.readouterr()
    assert "mlflow" not in (printed.out + printed.err).lower().replace("mlflow.db", "")
    assert "alembic" not in printed.err


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_without_repeats(root: Path) -> None:
    run_dir = root / "toy/0001"
    logger = make_logger(root)
    for step in range(10):
        logger.log_metrics({"loss": 10.0 - step, "epoch": 0}, step)
    logger.log_config("steps: 10\n", {"steps": 10, "rank": 4})
    logger.finalize("success")
    assert mlflow_run(run_dir)[1].info.status == "FINISHED"

    resumed = make_logger(root)
    resumed.log_config("steps: 20\n", {"steps": 20, "rank": 4})
    for step in range(6, 12):  # the last checkpoint was older than the last point
        resumed.log_metrics({"loss": 10.0 - step, "epoch": 0, "new": 1.0}, step)
    until(lambda: mlflow_run(run_dir)[1].info.status == "RUNNING")
    resumed.finalize("success")
    assert resumed.version == logger.version
    assert history(run_dir, "loss") == [(step, 10.0 - step) for step in range(12)]
    assert history(run_dir, "new") == [(step, 1.0) for step in range(6, 12)]
    client, run = mlflow_run(run_dir)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "10", "rank": "4", "steps/2": "20"}
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["config.2.yaml", "config.yaml"]


def test_a_crash_before_the_offset_was_kept_repeats_nothing(root: Path) -> None:
    run_dir = root / "toy/0001"
    logger = make_logger(root)
    logger.log_config("a: 1\n", {"a": 1})
    values = {0: 1.5, 1: math.nan, 2: math.inf, 3: -math.inf}
    for step, value in values.items():
        logger.log_metrics({"loss": value}, step)
    logger.finalize("success")
    run_id = logger.version
    (run_dir / "mlflow.json").unlink()  # even the run's id is lost

    assert sync.main([str(run_dir)]) == 0
    client, run = mlflow_run(run_dir, f"sqlite:///{root}/mlflow.db")
    assert run.info.run_id == run_id
    found = client.get_metric_history(run_id, "loss")
    assert sorted(point.step for point in found) == [0, 1, 2, 3]
    assert math.isnan(next(point.value for point in found if point.step == 1))
    assert next(point.value for point in found if point.step == 2) > 1e308


def test_thousands_of_points_arrive(root: Path) -> None:
    run_dir = root / "toy/0001"
    logger = make_logger(root)
    for step in range(1200):
        logger.log_metrics({f"metric{index}": float(step) for index in range(3)}, step)
    logger.finalize("success")
    assert [len(history(run_dir, f"metric{index}")) for index in range(3)] == [1200, 1200, 1200]


def test_only_scalars_are_metrics(root: Path) -> None:
    logger = make_logger(root)
    logger.log_metrics({"tensor": torch.tensor([2.0]), "int": 3, "bool": True}, 0)
    with pytest.raises(ValueError, match=r"metric 'grid' is no scalar but a Tensor of shape \(2, 3\)"):
        logger.log_metrics({"grid": torch.zeros(2, 3)}, 1)
    with pytest.raises(ValueError, match="metric 'word' is no scalar but a str"):
        logger.log_metrics({"word": "1.0"}, 1)
    logger.finalize("success")
    assert history(root / "toy/0001", "tensor") == [(0, 2.0)]
    assert history(root / "toy/0001", "int") == [(0, 3.0)]


def test_only_rank_zero_writes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger = make_logger(root)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_config("a: 1\n", {"a": 1})
    logger.finalize("success")
    assert not (root / "toy").exists()


def test_a_logger_without_run_directory_says_so(root: Path) -> None:
    logger = MLflowLogger(root=str(root))
    with pytest.raises(UserError, match="set MLflowLogger's run_dir"):
        logger.log_metrics({"loss": 1.0}, 0)


@pytest.mark.parametrize(
    ("failure", "expected", "status"),
    [
        (RuntimeError("boom"), RuntimeError, "FAILED"),
        (KeyboardInterrupt(), SystemExit, "KILLED"),
        (SIGTERMException(), SIGTERMException, "KILLED"),
    ],
)
def test_a_run_that_breaks_off_says_how(
    root: Path, failure: BaseException, expected: type[BaseException], status: str
) -> None:
    class Break(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                raise failure

    logger = make_logger(root)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(expected):
            trainer(root, logger, max_steps=5, callbacks=[Break()]).fit(Model())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it after a Ctrl-C
    logger.finalize("success")  # a later teardown does not gloss over it
    assert mlflow_run(root / "toy/0001")[1].info.status == status


# Processes

SCRIPT = """
import os, signal, sys
from pathlib import Path
from lrtrain.tracking.delivery import Delivery
from lrtrain.tracking.spool import Spool
run_dir, uri, end = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
spool = Spool(run_dir)
spool.start(run_dir.name, "together")
spool.append({"step": 1, "metrics": {"loss": 2.0}})
if end == "die":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.readline()
Delivery(run_dir, uri).send()
spool.finish("FINISHED")
Delivery(run_dir, uri).send()
"""


def process(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_may_create_the_same_database_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    both = [process(str(tmp_path / f"000{number}"), uri, "live") for number in (1, 2)]
    outcomes = [one.communicate("go\n", timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], outcomes
    first, second = (mlflow_run(tmp_path / f"000{number}")[1] for number in (1, 2))
    assert first.info.experiment_id == second.info.experiment_id
    assert first.info.run_id != second.info.run_id
    assert [history(tmp_path / f"000{number}", "loss") for number in (1, 2)] == [[(1, 2.0)], [(1, 2.0)]]
    assert not list(tmp_path.glob(".mlflow-*"))


def test_sync_sends_the_points_of_a_killed_run_and_closes_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = root / "toy/0001"
    dead = process(str(run_dir), f"sqlite:///{root}/mlflow.db", "die")
    assert dead.wait(60) == -signal.SIGKILL
    dead.communicate()
    assert sync.main([str(root)]) == 0
    assert capsys.readouterr().out == f"{run_dir}: 1 points sent to sqlite:///{root}/mlflow.db\n"
    assert history(run_dir, "loss") == [(1, 2.0)]
    assert mlflow_run(run_dir)[1].info.status == "KILLED"
    assert sync.main([str(root)]) == 0
    assert capsys.readouterr().out == f"{run_dir}: 0 points sent to sqlite:///{root}/mlflow.db\n"


def test_sync_leaves_a_running_run_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = make_logger(root)
    logger.log_metrics({"loss": 1.0}, 0)
    assert sync.main([str(root)]) == 0
    assert "still running" in capsys.readouterr().out
    logger.finalize("success")
    assert mlflow_run(root / "toy/0001")[1].info.status == "FINISHED"


def test_sync_can_copy_a_run_to_another_mlflow(root: Path, database: Path) -> None:
    logger = make_logger(root)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    (root / "other").mkdir()
    shutil.copy(database, root / "other/mlflow.db")
    assert sync.main([str(root / "toy"), "--tracking-uri", f"sqlite:///{root}/other/mlflow.db"]) == 0
    state = load_state(root / "toy/0001")
    assert state is not None
    assert state.tracking_uri == f"sqlite:///{root}/other/mlflow.db"
    assert state.run_id != logger.version
    assert history(root / "toy/0001", "loss") == [(0, 1.0)]


def test_a_sync_that_fails_elsewhere_forgets_nothing(root: Path) -> None:
    logger = make_logger(root)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    before = load_state(root / "toy/0001")
    with pytest.raises(UserError, match="takes no records"):
        sync.main([str(root / "toy"), "--tracking-uri", "http://127.0.0.1:9"])
    assert load_state(root / "toy/0001") == before


def test_sync_of_a_missing_folder_is_a_user_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="no folder runs"):
        sync.main([])
    os.mkdir("runs")
    assert sync.main([]) == 0
