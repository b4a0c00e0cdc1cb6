"""What a configuration names by URL: does it answer, does it take the credentials, and what time is it there."""

import base64
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import unquote, urlsplit

from lrtrain.studies.doctor.finding import Finding, failed, passed, warned
from lrtrain.tracking.destination import redact

PATIENCE = 4.0
"""Seconds that one address has to answer."""
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433, "hf": 443}
SKEW = 60.0
"""Seconds by which clocks may differ; S3 refuses requests that are off by 900."""


def urls_of(config: Any, environment: Mapping[str, str], at: str = "") -> dict[str, str]:
    """Every URL in a configuration, by its key, and those of the environment that a run goes by."""
    found: dict[str, str] = {}
    if not at:
        names = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "HF_ENDPOINT")
        found |= {name: environment[name] for name in names if "://" in environment.get(name, "")}
    if isinstance(config, str):
        return {at: config} if "://" in config else {}
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        found |= urls_of(value, environment, f"{at}.{key}" if at else str(key))
    return found


def check_url(key: str, url: str) -> Iterator[Finding]:
    """One URL: a store, a server or a database; its clock too, where it tells the time."""
    scheme = urlsplit(url).scheme.split("+")[0]
    if scheme in ("s3", "s3a"):
        yield from check_bucket(key, url)
    elif scheme in ("http", "https"):
        yield from check_server(key, url)
    elif scheme in ("sqlite", "file", "memory"):
        return  # a file of this machine: what is wrong with it is said at once
    elif scheme in PORTS:
        host = urlsplit(url).hostname if scheme != "hf" else "huggingface.co"
        yield from check_port_answers(key, url, host or "localhost", urlsplit(url).port or PORTS[scheme])
    else:
        yield warned(key, f"{redact(url)}: not looked at", f"whether {scheme}:// answers is for you to try")


def check_server(key: str, url: str) -> Iterator[Finding]:
    """An HTTP server; MLflow's is asked for an experiment, with the credentials of the URL or the environment."""
    tracking = "tracking" in key.lower()
    parts = urlsplit(url)
    address = f"{parts.scheme}://{parts.hostname}:{parts.port or PORTS[parts.scheme]}{parts.path.rstrip('/')}"
    request = urllib.request.Request(
        address + ("/api/2.0/mlflow/experiments/search?max_results=1" if tracking else "/")
    )
    user = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN", ""):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            code, headers = answer.status, answer.headers
    except urllib.error.HTTPError as error:
        code, headers = error.code, error.headers
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        found = f"{redact(url)} does not answer: {reason}"
        if tracking:
            yield warned(key, found, "start it, or correct the address; a run keeps its points until lrtrain sync")
        else:
            yield failed(key, found, _unreachable(parts.hostname))
        return
    if tracking and code in (401, 403):
        advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        yield failed(key, f"{redact(url)} refuses the credentials (HTTP {code})", advice)
    elif tracking and code != 200:
        yield failed(key, f"{redact(url)} is no MLflow server (HTTP {code})", "correct the address; mind its path")
    else:
        yield passed(key, f"{redact(url)} answers")
    yield from check_clock(parts.hostname or "", headers.get("Date"))


def check_bucket(key: str, url: str, write: bool | None = None) -> Iterator[Finding]:
    """A folder in a bucket: listed, and where a run writes there (checkpoints), an object made and removed."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    parts = urlsplit(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    config = Config(connect_timeout=PATIENCE, read_timeout=PATIENCE, retries={"total_max_attempts": 1})
    write = "checkpoints" in key or key == "runs" if write is None else write
    try:
        s3 = boto3.session.Session().client("s3", config=config)
        answer = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        if write:
            probe = f"{prefix}/.lrtrain-doctor-{os.getpid()}".lstrip("/")
            s3.put_object(Bucket=bucket, Key=probe, Body=b"")
            s3.delete_object(Bucket=bucket, Key=probe)
    except NoCredentialsError:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the pod"
        yield failed(key, f"{url}: no credentials", advice)
        return
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        what = {404: f"there is no bucket {bucket}", 403: "the credentials are refused"}.get(status, str(error)[:200])
        doing = f" to {error.operation_name}" if status == 403 else ""
        yield failed(key, f"{url}: {what}{doing} ({code})", f"correct {key}, AWS_ENDPOINT_URL or the credentials")
        return
    except (BotoCoreError, ValueError) as error:
        yield failed(key, f"{url}: {' '.join(str(error).split())[:200]}", _unreachable("the store"))
        return
    done = "written and removed a probe in" if write else "listed"
    yield passed(key, f"{done} {url}")
    yield from check_clock(bucket, answer["ResponseMetadata"]["HTTPHeaders"].get("date"))


def check_clock(server: str, date: str | None) -> Iterator[Finding]:
    """This machine's clock against what a server's Date header says."""
    if not date:
        return
    skew = time() - parsedate_to_datetime(date).timestamp()
    found = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {server}"
    if abs(skew) > 15 * SKEW:
        yield failed("clock", found, "start time synchronization (chrony, systemd-timesyncd): S3 refuses such requests")
    elif abs(skew) > SKEW:
        yield warned("clock", found, "start time synchronization (chrony, systemd-timesyncd)")
    else:
        yield passed("clock", f"within {max(abs(skew), 1):.0f} s of {server}")


def check_port_answers(key: str, url: str, host: str, port: int) -> Iterator[Finding]:
    """A port that takes a connection; what speaks there is not asked."""
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        yield failed(key, f"{redact(url)}: {host} port {port} does not answer: {error}", _unreachable(host))
    else:
        yield passed(key, f"{redact(url)}: {host} port {port} takes connections")


def _unreachable(host: str | None) -> str:
    return f"start {host}, correct the address, or open the network (proxy, firewall)"
