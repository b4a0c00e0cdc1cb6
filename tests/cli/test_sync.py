"""`lrtrain sync` of killed, running and finished runs, and two processes at one database."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lrtrain.cli import sync
from lrtrain.runtime.errors import UserError
from lrtrain.tracking.delivery import load_state
from tracked import history, make_logger, mlflow_run

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
