"""A folder for transformers as a version of a model in MLflow's registry."""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.afterwards import tracked_at
from lrtrain.tracking.delivery import load_state
from lrtrain.tracking.destination import connect, quiet, reason

PACKAGES = ("torch", "transformers")


def register(run_dir: Path, folder: Path, name: str) -> str:
    """Logs the folder with the run as a model that `mlflow.transformers` loads, and registers it; returns its version.

    Raises:
        UserError: the run is not in MLflow, or MLflow does not take it.
    """
    state, uri = load_state(run_dir), tracked_at(run_dir)
    if state is None or state.run_id is None:
        raise UserError(f"{run_dir} is not in MLflow yet: `lrtrain sync {run_dir}` sends it")
    quiet()
    try:
        import mlflow.transformers
        from mlflow import MlflowException
        from transformers import AutoModelForCausalLM, AutoTokenizer

        classes: dict[str, Any] = {"model": AutoModelForCausalLM, "tokenizer": AutoTokenizer}

        client, _ = connect(uri, run_dir)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=run_dir) as made:
            model = Path(made, "model")
            needed = [f"{package}=={version(package)}" for package in PACKAGES]
            parts = {kind: of.from_pretrained(folder) for kind, of in classes.items()}
            mlflow.transformers.save_model(parts, str(model), task="text-generation", pip_requirements=needed)
            client.log_artifacts(state.run_id, str(model), "model")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(state.run_id).info.artifact_uri}/model"
        return str(client.create_model_version(name, source, state.run_id).version)
    except Exception as error:  # MLflow, its database and the network raise what they like
        raise UserError(f"MLflow does not register {name} ({reason(error, uri)})") from error
