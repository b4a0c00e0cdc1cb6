"""A Lightning logger for a notebook: what is logged stays in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lrtrain.runtime.hints import nearest
from lrtrain.tracking.series import Series


class History(Logger):
    """Keeps every metric of a run: `history["val/loss"]` is its `Series`, of `step` and `value`.

        history = History()
        L.Trainer(logger=history, …).fit(model, datamodule=data)
        plt.plot(history["train/loss"].step, history["train/loss"].value)

    A step that is logged twice has its last value. Nothing is written: `tracking.logger.MLflowLogger` keeps a record.
    """

    def __init__(self) -> None:
        super().__init__()
        self._points: dict[str, dict[int, float]] = {}

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        for metric, value in metrics.items():
            self._points.setdefault(metric, {})[0 if step is None else step] = float(value)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keeps none: a model's arguments are in the notebook."""

    def metrics(self) -> list[str]:
        """Names of all that was logged."""
        return sorted(self._points)

    def last(self, metric: str) -> float:
        """The value at the last step."""
        return float(self[metric].value[-1])

    def __getitem__(self, metric: str) -> Series:
        """The points of a metric.

        Raises:
            KeyError: it was never logged; the message names one that was and is spelled like it.
        """
        if metric not in self._points:
            raise KeyError(f"{metric} was not logged; {nearest(metric, self._points)}")
        steps = sorted(self._points[metric])
        return Series(np.array(steps, dtype=np.int64), np.array([self._points[metric][step] for step in steps]))
