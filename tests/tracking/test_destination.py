"""Where a run is tracked and under what names: tracking URIs, passwords, parameters, and the commit."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.afterwards import tracked_at
from lrtrain.tracking.delivery import Delivery
from lrtrain.tracking.destination import quiet, reason, redact, resolve_uri, sqlite_path
from lrtrain.tracking.logger import MLflowLogger
from lrtrain.tracking.names import flatten, legal_name
from lrtrain.tracking.provenance import git_state
from lrtrain.tracking.runs import tracked_runs
from lrtrain.tracking.spool import Spool
from tracked import history, make_logger

quiet()


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


@pytest.mark.parametrize("name", ["x y", "x#y", "x%20y%", "x?y=1", "Läufe'\"", "a:b@c"])
def test_a_folder_of_any_name_holds_the_database_and_the_artifacts(name: str, root: Path) -> None:
    runs = root / name
    runs.mkdir()
    (root / "mlflow.db").rename(runs / "mlflow.db")
    logger = make_logger(runs)
    logger.log_config("a: 1\n", {"a": 1})
    logger.log_metrics({"loss": 1.5}, 0)
    logger.finalize("success")
    assert history(runs / "toy/0001", "loss") == [(0, 1.5)]
    (run,) = tracked_runs(None, str(runs))
    assert run.last == {"loss": 1.5}
    assert sqlite_path(resolve_uri(None, runs)) == runs / "mlflow.db"
    assert not [path for path in root.rglob("*") if path.is_file() and runs not in path.parents]
    (file,) = runs.glob("artifacts/*/artifacts/config.yaml")
    assert file.read_text() == "a: 1\n"


def test_a_password_is_neither_kept_nor_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "http://me:sesame@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    spool = Spool(tmp_path)
    spool.start("a", "b")
    spool.close()
    delivery = Delivery(tmp_path, secret)
    with pytest.raises(Exception, match="refused") as caught:
        delivery.send()
    assert "sesame" not in reason(caught.value, secret)
    assert "sesame" not in reason(ValueError(f"cannot reach {secret}"), secret)
    delivery.register()
    assert "sesame" not in (tmp_path / "mlflow.json").read_text()
    assert tracked_at(tmp_path) == secret
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=r"needs the password of http://me:\*\*\*@127\.0\.0\.1:9"):
        tracked_at(tmp_path)
    assert redact("sqlite:////a@b.db") == "sqlite:////a@b.db"


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

    monkeypatch.setenv("LRTRAIN_COMMIT", "f00")  # an image's: what runs is its code, not that of the folder
    assert git_state() == {"commit": "f00", "dirty": False}
    monkeypatch.setenv("LRTRAIN_COMMIT", "f00-dirty")
    assert git_state() == {"commit": "f00", "dirty": True}
    monkeypatch.setenv("LRTRAIN_COMMIT", "")
    assert git_state()["commit"] == git("rev-parse", "HEAD").strip()
