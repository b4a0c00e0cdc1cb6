"""URLs of a configuration: servers and stores that answer, that refuse, and that are not there."""

import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lrtrain.studies.doctor import addresses
from lrtrain.studies.doctor.addresses import check_bucket, check_clock, check_url, urls_of
from lrtrain.studies.doctor.finding import Finding
from ranks import free_port


class Server(BaseHTTPRequestHandler):
    """An MLflow server behind a password."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic bWU6c2VjcmV0"  # me:secret
        code = 404 if self.path.startswith("/wrong") else 200 if known else 401
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()


def look(key: str, url: str) -> Finding:
    return next(iter(check_url(key, url)))


def test_every_url_is_found_by_its_key() -> None:
    config = {"data": {"path": "s3://b/d", "prepare": {"source": ["hf://x/y", "local"]}}, "runs": "runs", "steps": 1}
    environment = {"MLFLOW_TRACKING_URI": "http://m:5000", "HOME": "/root"}
    assert urls_of(config, environment) == {
        "MLFLOW_TRACKING_URI": "http://m:5000",
        "data.path": "s3://b/d",
        "data.prepare.source.0": "hf://x/y",
    }
    assert urls_of(None, {}) == {}


def test_a_tracking_server_is_asked_with_the_credentials(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    found, clock = check_url("MLFLOW_TRACKING_URI", f"http://me:secret@{server}")
    assert (found.status, clock.check, clock.status) == ("pass", "clock", "pass")
    assert "secret" not in found.found
    assert "refuses the credentials (HTTP 401)" in look("MLFLOW_TRACKING_URI", f"http://{server}").found
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert look("trainer.logger.tracking_uri", f"http://{server}").status == "pass"
    assert "is no MLflow server (HTTP 404)" in look("MLFLOW_TRACKING_URI", f"http://{server}/wrong").found
    assert look("data.prepare.source.0", f"http://{server}/wrong").status == "pass"  # it answers


@pytest.mark.parametrize("scheme", ["http", "postgresql", "s3"])
def test_what_does_not_answer_is_a_failure_within_seconds(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    begun = time.monotonic()
    finding = look("data.path", f"{scheme}://127.0.0.1:{port}/x")
    assert finding.status == "fail"
    assert finding.advice
    assert time.monotonic() - begun < 40


def test_a_server_that_takes_connections_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        finding = look("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (finding.status, "timed out" in finding.found) == ("warn", True)  # a run goes on without it


def test_a_scheme_that_nobody_knows_is_said() -> None:
    assert look("data.path", "gs://bucket/data").status == "warn"
    assert [*check_url("MLFLOW_TRACKING_URI", "sqlite:///x.db")] == []


@pytest.mark.parametrize(("off", "status"), [(0, "pass"), (-120, "warn"), (7200, "fail")])
def test_a_clock_that_is_off_is_found(off: float, status: str) -> None:
    (finding,) = check_clock("server", formatdate(time.time() - off, usegmt=True))
    assert finding.status == status
    assert [*check_clock("server", None)] == []


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """An S3 store with the bucket `there`."""
    from moto.server import ThreadedMotoServer

    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture
def credentials(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    boto3.client("s3").create_bucket(Bucket="there")


@pytest.mark.usefixtures("credentials")
def test_a_bucket_is_listed_and_written_where_a_run_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    read, clock = check_bucket("data.path", "s3://there/shards")
    assert (read.status, read.found, clock.status) == ("pass", "listed s3://there/shards", "pass")
    written = next(iter(check_bucket("checkpoints.path", "s3://there/runs")))
    assert written.found == "written and removed a probe in s3://there/runs"
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="there")
    missing = next(iter(check_bucket("data.path", "s3://elsewhere/shards")))
    assert (missing.status, "there is no bucket elsewhere" in missing.found) == ("fail", True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "no credentials" in next(iter(check_bucket("data.path", "s3://there/shards"))).found


@pytest.mark.usefixtures("credentials")
def test_credentials_that_the_store_refuses_are_said(store: str) -> None:
    import requests

    requests.post(f"{store}/moto-api/reset-auth", data=b"0", timeout=10)  # from now on it looks at them
    try:
        finding = next(iter(check_bucket("data.path", "s3://there/shards")))
    finally:
        requests.post(f"{store}/moto-api/reset-auth", data=b"inf", timeout=10)
    assert finding.status == "fail"
    assert "the credentials are refused" in finding.found
