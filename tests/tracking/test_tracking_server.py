"""A run and its MLflow server: one that is down, dies, hangs or answers errors stops no training and loses no point."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from lrtrain.cli import sync
from lrtrain.runtime.errors import UserError
from lrtrain.tracking import sender
from lrtrain.tracking.delivery import load_state
from lrtrain.tracking.logger import MLflowLogger

STARTUP = 90.0  # seconds a server may take to start here


class Server:
    """A real `mlflow server` over sqlite, that can be killed and started again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "log.txt", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until(self.healthy, STARTUP)

    def healthy(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            until(self.gone)  # its workers hold the port for a moment longer

    def gone(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == errno.ECONNREFUSED


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "INTERVAL", 0.05)
    monkeypatch.setattr(sender, "LONGEST_PAUSE", 0.5)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lrtrain.tracking"]


def fetch(run_dir: Path, uri: str) -> tuple[Any, Any]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    state = load_state(run_dir)
    assert state is not None
    client = MlflowClient(uri)

    def run() -> Any:
        with suppress(MlflowException):  # a server may close an idle connection in the moment that it is used again
            return client.get_run(state.run_id)

    return client, until(run)


def steps(run_dir: Path, uri: str, key: str) -> list[int]:
    client, run = fetch(run_dir, uri)
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, key))


def test_a_server_that_dies_and_comes_back_gets_every_point_once(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    run_dir, long = tmp_path / "toy/0001", "ä😀" * 10_000
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    logger = MLflowLogger(run_dir=str(run_dir))
    logger.log_config(f"text: {long}\n", {"text": long, "empty": ""})
    for step in range(100):
        logger.log_metrics({"loss": float(step)}, step)
    run_id = until(lambda: logger.version)
    until(lambda: steps(run_dir, server.uri, "loss") == list(range(100)))

    server.kill()
    began = time.monotonic()
    for step in range(100, 200):
        logger.log_metrics({"loss": float(step)}, step)
    assert time.monotonic() - began < 5  # logging does not feel it
    until(lambda: len(warnings_of(caplog)) == 1)
    server.start()
    until(lambda: len(warnings_of(caplog)) == 2)
    logger.finalize("success")

    down, up = warnings_of(caplog)
    assert down.startswith(f"MLflow at {server.uri} takes no records (")
    assert up == f"MLflow at {server.uri} takes records again: 100 points that waited are sent"
    assert logger.version == run_id
    assert steps(run_dir, server.uri, "loss") == list(range(200))
    client, run = fetch(run_dir, server.uri)
    assert run.info.status == "FINISHED"
    parts = [run.data.params["text"]] + [run.data.params[f"text/part{part}"] for part in (2, 3, 4)]
    assert ("".join(parts), run.data.params["empty"]) == (long, "")
    stored = client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    assert Path(stored).read_text() == f"text: {long}\n"


def test_a_server_that_is_down_from_the_start_gets_everything_by_sync(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    run_dir = tmp_path / "toy/0001"
    logger = MLflowLogger(run_dir=str(run_dir), tracking_uri=server.uri)
    logger.log_config("a: 1\n", {"a": 1})
    for step in range(50):
        logger.log_metrics({"loss": float(step)}, step)
    began = time.monotonic()
    logger.finalize("success")
    assert time.monotonic() - began < 15
    assert warnings_of(caplog) == [
        f"MLflow at {server.uri} takes no records (Connection refused): they wait, training goes on",
        f"50 points of {run_dir} wait for MLflow: `lrtrain sync {run_dir}` sends them",
    ]
    assert logger.version is None

    complaint = rf"MLflow at {server.uri} takes no records \(Connection refused\): 50 points wait; start it"
    with pytest.raises(UserError, match=complaint):
        sync.main([str(tmp_path)])
    assert capsys.readouterr().out == f"{run_dir}: 50 points wait for {server.uri}\n"

    server.start()
    assert sync.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{run_dir}: 50 points sent to {server.uri}\n"
    assert steps(run_dir, server.uri, "loss") == list(range(50))
    _, run = fetch(run_dir, server.uri)
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
    first = run.info.start_time
    assert run.info.end_time - first < 60_000  # the run's own times, not those of the sync
    assert sync.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{run_dir}: 0 points sent to {server.uri}\n"


class Unwell(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500, "the database is on fire")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


def test_a_server_that_answers_errors_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unwell = ThreadingHTTPServer(("127.0.0.1", 0), Unwell)
    threading.Thread(target=unwell.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{unwell.server_port}"
    logger = MLflowLogger(run_dir=str(tmp_path / "toy/0001"), tracking_uri=uri)
    for step in range(20):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    unwell.shutdown()
    first, last = warnings_of(caplog)
    assert "500" in first
    assert last.startswith("20 points of")


def test_a_server_that_never_answers_does_not_hold_training_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as hung:
        uri = f"http://127.0.0.1:{hung.getsockname()[1]}"
        logger = MLflowLogger(run_dir=str(tmp_path / "toy/0001"), tracking_uri=uri)
        began = time.monotonic()
        for step in range(20):
            logger.log_metrics({"loss": float(step)}, step)
        assert time.monotonic() - began < 5
        logger.finalize("failed")
        assert time.monotonic() - began < 15
    assert warnings_of(caplog)[-1].startswith("20 points of")


def test_an_artifact_store_that_fails_does_not_hold_the_metrics_back(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    artifacts = server.folder / "artifacts"
    kept = artifacts.rename(server.folder / "kept") if artifacts.exists() else None
    artifacts.write_text("a file where the server wants a folder")
    run_dir = tmp_path / "toy/0001"
    logger = MLflowLogger(run_dir=str(run_dir), tracking_uri=server.uri)
    logger.log_text("note.txt", "hello")
    logger.log_metrics({"loss": 1.0}, 7)
    try:
        logger.finalize("success")
        assert steps(run_dir, server.uri, "loss") == [7]
        assert warnings_of(caplog)[-1].startswith(f"some records of {run_dir} wait")
    finally:
        artifacts.unlink()
        if kept is not None:
            kept.rename(artifacts)
    assert sync.main([str(run_dir)]) == 0
    client, run = fetch(run_dir, server.uri)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
