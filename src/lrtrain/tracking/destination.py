"""Where a run is tracked: checking the tracking URI, and opening MLflow there, quietly and without long waits."""

import getpass
import logging
import os
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lrtrain.runtime.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")

# The sender retries by itself, so a single request fails fast; a user's own setting wins.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what MLflow logs as an error it also raises, and the sender says it in a line
}


def resolve_uri(tracking_uri: str | None, root: str | Path) -> str:
    """The tracking URI to use: the one given, else MLFLOW_TRACKING_URI, else `sqlite:///<root>/mlflow.db`.

    A path of sqlite is made absolute, so that `lrtrain sync` finds it from any folder.

    Raises:
        UserError: MLflow has no store for this URI, or the URI has no host or no file.
    """
    where = "tracking_uri" if tracking_uri else "MLFLOW_TRACKING_URI"
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path(root, "mlflow.db"))
    advice = "give http(s)://host:port of a server or sqlite:///path/mlflow.db"
    if uri == "databricks":
        return uri
    try:
        parts = urlsplit(uri)
        scheme, host = parts.scheme.split("+")[0], parts.hostname
        _ = parts.port  # ValueError when it is no number
    except ValueError as error:
        raise UserError(f"{where} '{redact(uri)}' is no URI ({error}): {advice}") from None
    if scheme in ("", "file"):
        raise UserError(f"{where} '{uri}' is a folder, which MLflow does not write to any more: {advice}")
    if scheme == "sqlite":
        path = sqlite_path(uri)
        if path is None:
            raise UserError(f"{where} '{uri}' names no file: {advice}")
        return sqlite_uri(path, parts.scheme)
    if scheme not in SCHEMES and scheme not in {point.name for point in entry_points(group="mlflow.tracking_store")}:
        raise UserError(f"{where} '{redact(uri)}' has the unknown scheme '{scheme}': {advice}")
    if scheme in ("http", "https") and not host:
        raise UserError(f"{where} '{uri}' names no host: {advice}")
    return uri


def sqlite_uri(path: Path, scheme: str = "sqlite") -> str:
    """The URI of a sqlite file by its absolute path.

    Only what would be read otherwise is escaped: MLflow makes the folder of the URI as it stands, empty beside the real
    one.
    """
    return f"{scheme}:///{str(path.absolute()).replace('%', '%25').replace('?', '%3F')}"


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for another store or a database in memory."""
    if not uri.startswith("sqlite"):
        return None
    path = unquote(uri.partition(":///")[2].partition("?")[0])
    return Path(path).absolute() if path and path != ":memory:" else None


def password(uri: str) -> str | None:
    """The password inside a URI, if there is one."""
    try:
        return urlsplit(uri).password
    except ValueError:
        return None


def redact(uri: str) -> str:
    """`uri` without its password: what is printed and what is written to the run directory."""
    secret = password(uri)
    return uri.replace(f":{secret}@", ":***@") if secret else uri


def reason(error: BaseException, uri: str) -> str:
    """Why MLflow at `uri` cannot be used: the root cause, such as `Connection refused`, in a line without password."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    text = (root.strerror if isinstance(root, OSError) else None) or str(root) or str(error) or repr(error)
    secret = password(uri)
    return (text.replace(secret, "***") if secret else text).splitlines()[0][:300]


GROUP_TAG = "lrtrain.group"
"""What the runs of one name (`--name` of `lrtrain fit`) have in common; older ones have an experiment of that name."""

KIND = ("mlflow.experimentKind", "custom_model_development")
"""What makes MLflow open an experiment with the charts and tables of training, and not of evaluating prompts."""


def experiment_name(given: str | None) -> str:
    """The MLflow experiment of a run: the one given, else MLFLOW_EXPERIMENT_NAME, else `lrtrain`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lrtrain" if given is None else given


def experiment_id(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    """The id of an experiment for training, which is made where there is none. Raises UserError for a deleted one."""
    from mlflow import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location, dict([KIND])))
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # another process may have been faster
            if experiment is None:
                raise error
    if experiment.lifecycle_stage == "deleted":
        raise UserError(f"MLflow experiment '{name}' is deleted: restore it, or give the run another experiment")
    if KIND[0] not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, *KIND)
    return str(experiment.experiment_id)


def connect(uri: str, run_dir: Path) -> tuple["MlflowClient", str | None]:
    """A client for `uri`, and where a new experiment keeps its artifacts (None: the server decides).

    A sqlite database is created here (seconds), its artifacts in `artifacts` beside it; those of another database that
    is written without a server go to `<runs root>/artifacts`. Nothing is asked of a server yet.
    """
    from mlflow import MlflowClient

    database = sqlite_path(uri)
    location = None
    if database is not None:
        location = (database.parent / "artifacts").as_uri()
        if not database.exists():
            _create_sqlite(database, location)
    elif urlsplit(uri).scheme.split("+")[0] in ("postgresql", "mysql", "mssql"):
        location = (run_dir.absolute().parent.parent / "artifacts").as_uri()
    return MlflowClient(tracking_uri=uri), location


def user() -> str:
    """Who runs this process, as the system knows it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def quiet() -> None:
    """Keep MLflow silent, without retries of its own and without calls home. Call before MLflow is first imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    level = os.environ["MLFLOW_LOGGING_LEVEL"].upper()
    for name in ("mlflow", "alembic"):  # in case somebody imported it before
        logging.getLogger(name).setLevel(level)


def _create_sqlite(database: Path, artifacts: str) -> None:
    """Make MLflow's tables in a draft and link it into place whole: another process may be doing the same."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=database.parent) as folder:
        draft = Path(folder) / database.name
        SqlAlchemyStore(sqlite_uri(draft), artifacts).engine.dispose()
        try:
            os.link(draft, database)
        except FileExistsError:
            return
