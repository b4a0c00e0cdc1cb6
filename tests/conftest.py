"""Settings of every test: one thread, fixed seeds, the same examples in every run; and what several files share."""

import shutil
import signal
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from lrtrain.runtime import own_modules

if TYPE_CHECKING:
    from s3_server import S3Server

settings.register_profile("lrtrain", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("lrtrain")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `lrtrain` adds to the import path in a test stays with that test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(own_modules, "_folders", [])


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data set of `token_streams`."""
    import token_streams

    return token_streams.prepare_in(tmp_path_factory.mktemp("data"))


@pytest.fixture
def source(tmp_path: Path) -> list[str]:
    """The documents of `sources`, free to be changed."""
    import sources

    sources.write_sources(tmp_path / "source")
    return [str(tmp_path / "source")]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a tokenizer trained on the documents of `sources`."""
    import sources
    from lrtrain.data.tokenizer import train_tokenizer

    file = str(tmp_path_factory.mktemp("tokenizer") / "given.json")
    train_tokenizer(sources.TEXTS, 300).save(file)
    return file


@pytest.fixture(scope="module")
def server() -> Iterator["S3Server"]:
    """An S3 server of the module's own, with an empty bucket, and the environment that leads to it."""
    import s3_server

    with s3_server.running() as server, pytest.MonkeyPatch.context() as patched:
        for name, value in server.environment().items():
            patched.setenv(name, value)
        server.bucket("bucket")
        yield server


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database to copy: making one takes seconds."""
    import tracked

    return tracked.make_database(tmp_path_factory.mktemp("database"))


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs with an MLflow database, to which records are sent without delay."""
    from lrtrain.tracking import sender

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "INTERVAL", 0.05)
    shutil.copy(database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def foreground() -> Iterator[None]:
    """Ctrl-C as in a terminal: background jobs of a shell ignore it, and so then does a run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def started() -> Iterator[list[BaseProcess]]:
    """Processes that a test starts and adds here; they are killed at its end."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()
