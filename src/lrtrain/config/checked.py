"""A configuration, parsed and built as `lrtrain fit` does it, without data, weights or a run directory."""

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrtrain.config.settings import as_text
from lrtrain.config.train_parser import TrainCLI, check_trainer


def checked(configs: Sequence[Path], settings: dict[str, Any]) -> str:
    """The complete configuration that files and settings (by dotted key) make, as YAML that `--config` takes.

    Raises:
        UserError: what `lrtrain fit` would refuse: an unknown key, or a value of a wrong type or out of range.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    files = [part for file in configs for part in ("--config", str(file))]
    flags = [f"--{key}={as_text(value)}" for key, value in settings.items()]
    with contextlib.redirect_stderr(io.StringIO()):
        return _Checked("fit", [*files, *flags])._record()


class _Checked(TrainCLI):
    def instantiate_trainer(self, **kwargs: Any) -> Any:
        check_trainer({**self.config_init.trainer, **kwargs})
        self.model.check()
