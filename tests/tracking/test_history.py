"""The logger that keeps a run in memory."""

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lrtrain.tracking.history import History


class Line(L.LightningModule):
    """Fits y = 2 x with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.weight * batch - 2 * batch).square().mean()
        self.log("train/loss", loss)
        self.logger.log_metrics({"own": 10.0 * batch_idx}, step=self.global_step + 1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_leaves_its_metrics_as_series(tmp_path) -> None:  # type: ignore[no-untyped-def]
    history = History()
    trainer = L.Trainer(
        max_steps=4,
        log_every_n_steps=1,
        logger=history,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Line(), torch.utils.data.DataLoader([torch.ones(1)] * 8))
    loss = history["train/loss"]
    assert len(loss.step) == 4
    assert (loss.value[1:] < loss.value[:-1]).all()
    assert history["own"].step.tolist() == [1, 2, 3, 4]
    assert history["own"].value.tolist() == [0.0, 10.0, 20.0, 30.0]
    assert history.last("own") == 30.0
    assert {"own", "train/loss"} <= {*history.metrics()}
    assert not [*tmp_path.iterdir()]


def test_steps_come_in_order_each_once_with_its_last_value() -> None:
    history = History()
    for step, value in ((5, 1.0), (2, 2.0), (5, 3.0)):
        history.log_metrics({"val/loss": torch.tensor(value)}, step=step)
    assert history["val/loss"].step.tolist() == [2, 5]
    assert history["val/loss"].value.tolist() == [2.0, 3.0]


def test_an_unknown_metric_is_refused_with_those_that_are_there() -> None:
    history = History()
    history.log_metrics({"val/loss": 1.0}, step=1)
    with pytest.raises(KeyError, match=r"val/los was not logged; there are val/loss"):
        history["val/los"]
