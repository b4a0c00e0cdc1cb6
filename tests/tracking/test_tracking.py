"""A run in MLflow's own database: whole, resumed, ended as it ended. Servers: test_tracking_server.py."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lrtrain.cli import sync
from lrtrain.runtime.errors import UserError
from lrtrain.tracking.logger import MLflowLogger, rank_zero_only
from tracked import history, make_logger, mlflow_run, until

LONG = "".join(f"pattern-{number}," for number in range(2000))  # 24 890 characters: four parts and more than any limit


class Model(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = super().training_step(batch, batch_idx)
        self.log("train/loss", out["loss"])
        return out


def trainer(root: Path, logger: MLflowLogger, **options: Any) -> L.Trainer:
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(
        default_root_dir=root, accelerator="cpu", logger=logger, log_every_n_steps=1, **{**silent, **options}
    )


def test_a_run_with_the_defaults_is_whole_in_sqlite_and_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    logger = MLflowLogger(tags={"team": "low rank"}, run_dir="runs/toy/0001")
    logger.log_config("model: {}\n", {"model": {"rank": 64, "patterns": LONG}})
    logger.log_manifest({"vocab_size": 4096, "splits": {"train": {"tokens": 10}}, "source": ["a", "b"]})
    logger.log_provenance()
    trainer(tmp_path, logger, max_steps=5, limit_val_batches=1).fit(Model())

    assert sorted(path.name for path in Path("runs").iterdir()) == ["artifacts", "mlflow.db", "toy"]
    _, run = mlflow_run(Path("runs/toy/0001"), "sqlite:///runs/mlflow.db")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "toy/0001")
    assert run.info.run_id == logger.version
    params = run.data.params
    assert params["model.rank"] == "64"
    assert (params["manifest.vocab_size"], params["manifest.splits.train.tokens"]) == ("4096", "10")
    parts = [params["model.patterns"]] + [params[f"model.patterns/part{part}"] for part in range(2, 6)]
    assert "".join(parts) == LONG
    tags = run.data.tags
    assert (tags["team"], tags["versions.torch"]) == ("low rank", torch.__version__.split("+")[0])
    assert int(tags["hardware.cores"]) >= 1
    assert tags["git.dirty"] in ("true", "false", "null")
    assert [step for step, _ in history(Path("runs/toy/0001"), "train/loss")] == [0, 1, 2, 3, 4]
    artifacts = tmp_path / "runs/artifacts" / run.info.run_id / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == ["config.yaml", "data_manifest.json", "provenance.json"]
    assert json.loads((artifacts / "data_manifest.json").read_text())["source"] == ["a", "b"]
    printed = capfd.readouterr()
    assert "mlflow" not in (printed.out + printed.err).lower().replace("mlflow.db", "")
    assert "alembic" not in printed.err


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_without_repeats(root: Path) -> None:
    run_dir = root / "toy/0001"
    logger = make_logger(root)
    for step in range(10):
        logger.log_metrics({"loss": 10.0 - step, "epoch": 0}, step)
    logger.log_config("steps: 10\n", {"steps": 10, "rank": 4})
    logger.finalize("success")
    assert mlflow_run(run_dir)[1].info.status == "FINISHED"

    resumed = make_logger(root)
    resumed.log_config("steps: 20\n", {"steps": 20, "rank": 4})
    for step in range(6, 12):  # the last checkpoint was older than the last point
        resumed.log_metrics({"loss": 10.0 - step, "epoch": 0, "new": 1.0}, step)
    until(lambda: mlflow_run(run_dir)[1].info.status == "RUNNING")
    resumed.finalize("success")
    assert resumed.version == logger.version
    assert history(run_dir, "loss") == [(step, 10.0 - step) for step in range(12)]
    assert history(run_dir, "new") == [(step, 1.0) for step in range(6, 12)]
    client, run = mlflow_run(run_dir)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "10", "rank": "4", "steps/2": "20"}
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["config.2.yaml", "config.yaml"]


def test_a_crash_before_the_offset_was_kept_repeats_nothing(root: Path) -> None:
    run_dir = root / "toy/0001"
    logger = make_logger(root)
    logger.log_config("a: 1\n", {"a": 1})
    values = {0: 1.5, 1: math.nan, 2: math.inf, 3: -math.inf}
    for step, value in values.items():
        logger.log_metrics({"loss": value}, step)
    logger.finalize("success")
    run_id = logger.version
    (run_dir / "mlflow.json").unlink()  # even the run's id is lost

    assert sync.main([str(run_dir)]) == 0
    client, run = mlflow_run(run_dir, f"sqlite:///{root}/mlflow.db")
    assert run.info.run_id == run_id
    found = client.get_metric_history(run_id, "loss")
    assert sorted(point.step for point in found) == [0, 1, 2, 3]
    assert math.isnan(next(point.value for point in found if point.step == 1))
    assert next(point.value for point in found if point.step == 2) > 1e308


def test_thousands_of_points_arrive(root: Path) -> None:
    run_dir = root / "toy/0001"
    logger = make_logger(root)
    for step in range(1200):
        logger.log_metrics({f"metric{index}": float(step) for index in range(3)}, step)
    logger.finalize("success")
    assert [len(history(run_dir, f"metric{index}")) for index in range(3)] == [1200, 1200, 1200]


def test_only_scalars_are_metrics(root: Path) -> None:
    logger = make_logger(root)
    logger.log_metrics({"tensor": torch.tensor([2.0]), "int": 3, "bool": True}, 0)
    with pytest.raises(ValueError, match=r"metric 'grid' is no scalar but a Tensor of shape \(2, 3\)"):
        logger.log_metrics({"grid": torch.zeros(2, 3)}, 1)
    with pytest.raises(ValueError, match="metric 'word' is no scalar but a str"):
        logger.log_metrics({"word": "1.0"}, 1)
    logger.finalize("success")
    assert history(root / "toy/0001", "tensor") == [(0, 2.0)]
    assert history(root / "toy/0001", "int") == [(0, 3.0)]


def test_only_rank_zero_writes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger = make_logger(root)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_config("a: 1\n", {"a": 1})
    logger.finalize("success")
    assert not (root / "toy").exists()


def test_a_logger_without_run_directory_says_so(root: Path) -> None:
    logger = MLflowLogger(root=str(root))
    with pytest.raises(UserError, match="set MLflowLogger's run_dir"):
        logger.log_metrics({"loss": 1.0}, 0)


@pytest.mark.parametrize(
    ("failure", "expected", "status"),
    [
        (RuntimeError("boom"), RuntimeError, "FAILED"),
        (KeyboardInterrupt(), SystemExit, "KILLED"),
        (SIGTERMException(), SIGTERMException, "KILLED"),
    ],
)
def test_a_run_that_breaks_off_says_how(
    root: Path, failure: BaseException, expected: type[BaseException], status: str
) -> None:
    class Break(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                raise failure

    logger = make_logger(root)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(expected):
            trainer(root, logger, max_steps=5, callbacks=[Break()]).fit(Model())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it after a Ctrl-C
    logger.finalize("success")  # a later teardown does not gloss over it
    assert mlflow_run(root / "toy/0001")[1].info.status == status
