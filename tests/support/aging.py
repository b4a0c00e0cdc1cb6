"""A heartbeat file that is made old as something begins, and whether it is new once that has ended."""

import os
from pathlib import Path
from typing import Any, ClassVar

import lightning as L


def age(file: Path) -> None:
    file.touch()
    os.utime(file, (0, 0))


def is_new(file: Path) -> bool:
    return file.stat().st_mtime > 0


class Aging(L.Callback):
    """Ages the file at each moment, after it noted whether what came before had renewed it."""

    noted: ClassVar[dict[str, list[bool]]] = {}

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.noted.clear()
        self.noted["there at setup"] = []

    def setup(self, *_: Any, **__: Any) -> None:
        self.noted["there at setup"].append(self.file.exists())

    def _turn(self, before: str) -> None:
        self.noted.setdefault(before, []).append(is_new(self.file))
        age(self.file)

    def on_train_start(self, *_: Any) -> None:
        age(self.file)

    def on_train_batch_start(self, *_: Any) -> None:
        self._turn("what came before a batch")

    def on_train_batch_end(self, *_: Any) -> None:
        self._turn("the batch alone")

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._turn("what came before a validation batch")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._turn("the last validation batch")
