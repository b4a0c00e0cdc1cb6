"""What a user finds in MLflow: one experiment of training, runs by group, the metrics that matter first, and a note."""

import json
from pathlib import Path
from typing import Any

import pytest

import toy
from commandline import RECIPE
from lrtrain.cli.main import main
from lrtrain.runtime.errors import UserError
from lrtrain.tracking.delivery import STATE_NAME
from lrtrain.tracking.destination import connect
from lrtrain.tracking.names import own_name, shown_name
from lrtrain.tracking.runs import tracked_runs
from tracked import history, make_logger, mlflow_run


def track(root: Path, run: str, **metrics: float) -> Any:
    logger = make_logger(root, run)
    logger.log_metrics({name.replace("_", "/"): value for name, value in metrics.items()}, 1)
    logger.finalize("success")
    return mlflow_run(root / run)


def test_runs_of_all_names_are_in_one_experiment_of_training(root: Path) -> None:
    client, one = track(root, "a/0001", val_loss=2.0)
    _, other = track(root, "b/0001", val_loss=1.0)
    assert one.info.experiment_id == other.info.experiment_id
    experiment = client.get_experiment(one.info.experiment_id)
    assert (experiment.name, experiment.tags["mlflow.experimentKind"]) == ("lrtrain", "custom_model_development")
    assert [run.data.tags["lrtrain.group"] for run in (one, other)] == ["a", "b"]
    assert [(run.name, run.last) for run in tracked_runs(None, str(root), names=["b", "a"])] == [
        ("b", {"val/loss": 1.0}),
        ("a", {"val/loss": 2.0}),
    ]


def test_an_experiment_of_ones_own_is_marked_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = connect(f"sqlite:///{root}/mlflow.db", root)
    mine = client.create_experiment("mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    _, run = track(root, "a/0001", loss=1.0)
    assert run.info.experiment_id == mine
    assert client.get_experiment(mine).tags["mlflow.experimentKind"] == "custom_model_development"
    with pytest.raises(UserError, match="the logger's experiment is empty"):
        make_logger(root, experiment=" ")


@pytest.mark.parametrize(
    "name", ["val/loss", "train/loss", "val/web/loss", "test/loss", "spectral/sigma_A", "epoch", "val"]
)
def test_a_metric_that_is_shown_by_another_name_is_found_by_its_own(name: str) -> None:
    assert own_name(shown_name(name)) == own_name(name) == name


def test_train_and_val_come_before_all_others(root: Path) -> None:
    _, run = track(root, "a/0001", val_loss=1.0, train_loss=2.0, spectral_a=3.0, checkpoint_s=4.0, lr_h=5.0)
    sections = sorted({name.split("/")[0] for name in run.data.metrics})  # as MLflow's page sorts them
    assert sections == ["Train", "Val", "checkpoint", "lr", "spectral"]
    assert history(root / "a/0001", "val/loss") == [(1, 1.0)]


def test_a_run_of_an_older_version_goes_on_under_its_names_and_is_found(root: Path) -> None:
    client, where = connect(f"sqlite:///{root}/mlflow.db", root)
    track(root, "a/0001", val_loss=3.0)
    _, run = mlflow_run(root / "a/0001")
    state = root / "a/0001" / STATE_NAME
    older = client.create_run(client.create_experiment("a", where), run_name="a/0001")
    client.log_metric(older.info.run_id, "val/loss", 3.0, step=1)
    content = {**json.loads(state.read_text()), "run_id": older.info.run_id}
    del content["capitals"]
    state.write_text(json.dumps(content))
    client.delete_run(run.info.run_id)
    logger = make_logger(root, "a/0001")
    logger.log_metrics({"val/loss": 2.0}, 2)
    logger.finalize("success")
    assert set(client.get_run(older.info.run_id).data.metrics) == {"val/loss"}
    (found,) = tracked_runs(None, str(root), names=["a"])
    assert found.series("val/loss").value.tolist() == [3.0, 2.0]


def test_what_is_not_set_is_no_parameter_until_it_is(root: Path) -> None:
    logger = make_logger(root)
    logger.log_config("", {"model": {"rank": None, "loss": None, "lr": 0.1}})
    logger.finalize("killed")
    logger = make_logger(root)
    logger.log_config("", {"model": {"rank": 8, "loss": None, "lr": None}})
    logger.finalize("success")
    _, run = mlflow_run(root / "toy/0001")
    assert run.data.params == {"model.lr": "0.1", "model.rank/2": "8", "model.lr/2": "null"}
    (found,) = tracked_runs(None, str(root))
    assert found.params == {"model.rank": "8"}


def test_a_note_that_a_user_has_changed_stays(root: Path) -> None:
    logger = make_logger(root)
    logger.log_note("ours")
    logger.finalize("killed")
    client, run = mlflow_run(root / "toy/0001")
    assert run.data.tags["mlflow.note.content"] == "ours"
    client.set_tag(run.info.run_id, "mlflow.note.content", "the user's")
    logger = make_logger(root)
    logger.log_note("ours, again")
    logger.finalize("success")
    assert mlflow_run(root / "toy/0001")[1].data.tags["mlflow.note.content"] == "the user's"


def test_a_fit_fills_source_user_data_and_note(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = toy.shards(root)
    command = ["fit", "--config", str(RECIPE), *toy.flags(shards, root)]
    secret = "--trainer.logger=x://me:secret@host"
    monkeypatch.setattr("sys.argv", ["/usr/bin/lrtrain", *command, secret])
    assert main(command) == 0
    _, run = mlflow_run(root / "quickstart/0001")
    tags = run.data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("lrtrain fit", "LOCAL")
    assert tags["mlflow.user"]
    note = tags["mlflow.note.content"]
    assert note.startswith("`lrtrain fit --config")
    assert "x://me:***@host" in note
    assert "| projections | attention LowRankLinear rank_ratio 0.25; mlp LowRankLinear rank_ratio 0.25 |" in note
    assert (
        "| optimizers | `hidden` Spectron lr 0.035 weight_decay 0.0; `other` AdamW lr 0.012 weight_decay 0.0 |" in note
    )
    assert f"`lrtrain generate {root}/quickstart/0001`" in note
    inputs = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert {context: data.name for context, data in inputs.items()} == {
        "training": "shards (train)",
        "validation": "shards (val)",
    }
    manifest = json.loads((shards / "manifest.json").read_text())
    assert json.loads(inputs["training"].profile)["tokens"] == manifest["train"]["tokens"]
    assert json.loads(inputs["training"].source) == {"uri": str(shards)}
    assert "null" not in run.data.params.values()
    lines = map(json.loads, (root / "quickstart/0001/metrics.jsonl").read_text().splitlines())
    first = next(line["params"] for line in lines if "params" in line)
    groups = dict.fromkeys(key.partition(".")[0] for key in first)
    assert [*groups][:3] == ["model", "data", "trainer"]  # MLflow shows parameters in the order in which they came
