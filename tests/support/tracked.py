"""Tracked runs in a folder with an MLflow database of its own, and what MLflow holds of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrtrain.tracking.delivery import load_state
from lrtrain.tracking.destination import connect, quiet
from lrtrain.tracking.logger import MLflowLogger
from lrtrain.tracking.names import shown_name

quiet()


def make_database(folder: Path) -> Path:
    """A fresh MLflow database."""
    from sqlalchemy import Engine, event

    def unsynced(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # no power cut is tested: hundreds of syncs take seconds

    event.listen(Engine, "connect", unsynced)
    try:
        connect(f"sqlite:///{folder}/mlflow.db", folder)
    finally:
        event.remove(Engine, "connect", unsynced)
    return folder / "mlflow.db"


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
    """The points that MLflow has of a metric, by its own name."""
    client, run = mlflow_run(run_dir)
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, shown_name(key)))


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found
