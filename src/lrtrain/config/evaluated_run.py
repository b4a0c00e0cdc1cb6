"""`lrtrain validate NAME`: a checkpoint by its run's name, folder or file, with the configuration of its run."""

import atexit
import tempfile
from pathlib import Path

from lrtrain.checkpoint.remote_runs import cached
from lrtrain.checkpoint.saved_weights import SavedWeights
from lrtrain.config.settings import CONFIG, flags
from lrtrain.config.trained_model import newest_checkpoint
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.stores import is_remote


def of_checkpoint(named: str, argv: list[str]) -> list[str]:
    """The arguments of `validate` that mean the checkpoint of a name, a folder, a file or a URL.

    The configuration is that of its run, unless one is given.

    Raises:
        UserError: there is no such checkpoint, it holds no configuration, or `--ckpt_path` names another one.
    """
    given = {flag for flag, _ in flags(argv)}
    if "--ckpt_path" in given:
        raise UserError(f"{named} and --ckpt_path both name a checkpoint: give one of them")
    checkpoint = cached(named) if is_remote(named) else newest_checkpoint(Path(named))
    files = [] if given.intersection(CONFIG) else ["--config", _configuration(checkpoint)]
    return [*files, *argv, f"--ckpt_path={checkpoint}"]


def _configuration(checkpoint: Path) -> str:
    """The file of a run's configuration, or one made of that which the checkpoint holds."""
    beside = checkpoint.parent.parent / "config.yaml"
    if beside.is_file():
        return str(beside)
    text = SavedWeights(checkpoint, checked=True).config
    if not text:
        raise UserError(f"{checkpoint} holds no configuration: give its --config")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False, encoding="utf-8") as file:
        file.write(text)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name
