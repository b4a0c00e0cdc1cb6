"""`fit --ckpt_path`: a resumed run is the run that never stopped, except for what the configuration changes."""

import json
import math
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

import toy
from checkpoint_state import differences
from commandline import RECIPE, arguments, refusal
from lrtrain.cli.main import main
from lrtrain.tracking.spool import Spool

STEPS = 6
SCT = RECIPE.with_name("sct_S.yaml")
STOP = "--trainer.callbacks=commandline.StopAt"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> str:
    """Turns the spool on, without the seconds that an MLflow database takes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return "--trainer.logger=true"


def stop(argv: list[str], batch: int, crash: bool = False) -> None:
    """Fits until a micro-batch, then is told to end, or crashes."""
    with pytest.raises(RuntimeError if crash else SystemExit) as ended:
        main(["fit", *argv, STOP, f"--trainer.callbacks.batch={batch}", f"--trainer.callbacks.crash={crash}"])
    assert crash or ended.value.code == 143


def checkpoint(run: Path, step: int = STEPS) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / f"checkpoints/step-{step:08d}.ckpt", weights_only=True)
    return found


def metric(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) in the order of metrics.jsonl."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["metrics"][name]) for r in records if name in r.get("metrics", {})]


@pytest.mark.parametrize(
    ("recipe", "accumulate", "batch", "crash", "stopped"),
    [(RECIPE, 1, 2, False, 3), (SCT, 1, 2, False, 3), (RECIPE, 2, 7, True, 3), (SCT, 2, 6, False, 4)],
    ids=["spectron", "sct", "spectron that crashes in mid-accumulation", "sct with accumulation"],
)
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    recipe: Path, accumulate: int, batch: int, crash: bool, stopped: int, shards: Path, tmp_path: Path, tracked: str
) -> None:
    more = [tracked, f"--trainer.accumulate_grad_batches={accumulate}", "--name=x"]
    whole = arguments(shards, tmp_path / "whole", *more, steps=STEPS, recipe=recipe)
    parts = arguments(shards, tmp_path / "parts", *more, steps=STEPS, recipe=recipe)
    assert main(["fit", *whole]) == 0
    stop(parts, batch, crash)
    runs = [tmp_path / folder / "x/0001" for folder in ("whole", "parts")]
    assert [path.name for path in (runs[1] / "checkpoints").iterdir()] == [f"step-{stopped:08d}.ckpt"]
    assert main(["fit", *parts, "--ckpt_path=last"]) == 0

    a, b = (checkpoint(run) for run in runs)
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(a[part], b[part]) == []
    constraints = [saved["callbacks"]["SpectralConstraints"] for saved in (a, b)]
    assert differences(*constraints) == []
    assert bool(constraints[0].get("SpectralRenormalization", {}).get("vectors")) == (recipe == RECIPE)
    losses = [metric(run, "train/loss") for run in runs]
    assert losses[0] == losses[1], "another order of the data"
    assert len(losses[0]) == STEPS


def test_the_configuration_of_the_resumed_run_wins_over_the_checkpoint_and_a_rate_that_jumps_is_said(
    shards: Path, tmp_path: Path, tracked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = arguments(shards, tmp_path, tracked, steps=STEPS)
    stop(fit, 2)
    changed = ["--model.optimizers.hidden.lr=0.05", "--model.optimizers.other.weight_decay=0.5"]
    changed += ["--model.schedule.warmup=0.5", "--trainer.max_steps=8", "--ckpt_path=last"]
    assert main(["fit", *fit, *changed]) == 0
    run = tmp_path / "quickstart/0001"
    groups = {g["optimizer"]: g for g in checkpoint(run, 8)["optimizer_states"][0]["param_groups"]}
    assert groups["Spectron"]["initial_lr"] == 0.05
    assert groups["AdamW"]["weight_decay"] == 0.5
    # Half of the 8 steps rise, so the fourth has the full rate; then half a cosine.
    shares = [1.0] + [0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert [rate for _, rate in metric(run, "lr/hidden")[3:]] == pytest.approx([0.05 * share for share in shares])
    # Three of six steps were half a cosine; the next eight steps rise until the fourth.
    said = (
        "from step 3 on: lr/hidden 0.05 instead of 0.0175, lr/other 0.012 instead of 0.006; the rate, the schedule or"
    )
    assert said in capsys.readouterr().out


def test_a_longer_run_is_told_with_its_rates_and_the_same_one_goes_on_without_a_word(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = arguments(shards, tmp_path, steps=4)
    assert main(["fit", *fit]) == 0
    assert main(["fit", *fit, "--ckpt_path=last", "--trainer.max_steps=8"]) == 0
    assert "from step 4 on: lr/hidden 0.0175 instead of 0, lr/other 0.006 instead of 0; the" in capsys.readouterr().out
    stop(arguments(shards, tmp_path, "--name=x", steps=4), 2)
    assert main(["fit", *fit, "--name=x", "--ckpt_path=last"]) == 0
    assert "instead of" not in capsys.readouterr().out


def test_another_order_of_the_data_starts_it_anew_with_a_line(
    shards: Path, tmp_path: Path, tracked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = arguments(shards, tmp_path, tracked, steps=STEPS)
    stop(fit, 2)
    assert main(["fit", *fit, "--ckpt_path=last", "--data.seed=5"]) == 0
    assert "The train data is not that of the checkpoint (seed): its stream begins anew" in capsys.readouterr().out
    assert [step for step, _ in metric(tmp_path / "quickstart/0001", "train/loss")] == list(range(1, STEPS + 1))


def test_a_resumed_run_goes_on_in_its_folder_and_in_its_mlflow_run_without_repeats(
    shards: Path, tmp_path: Path
) -> None:
    fit = arguments(shards, tmp_path, "--trainer.logger=true", steps=STEPS)
    stop(fit, 2)
    assert main(["fit", *fit, "--ckpt_path=last", "--model.optimizers.other.lr=0.002"]) == 0
    assert [path.name for path in (tmp_path / "quickstart").iterdir()] == ["0001"]
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lrtrain").experiment_id])
    assert run.info.status == "FINISHED"
    for name in ("Train/loss", "Train/gradient_norm", "Val/loss", "throughput/tokens_seen"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert sorted(set(steps)) == steps, f"{name} has a point twice"
    assert len(client.get_metric_history(run.info.run_id, "Train/loss")) == STEPS
    key = "model.optimizers.other.init_args.lr"
    assert (run.data.params[key], run.data.params[f"{key}/2"]) == ("0.012", "0.002")


def test_last_with_nothing_there_starts_afresh_and_says_so(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(shards, tmp_path, "--ckpt_path=last")]) == 0
    assert f"no checkpoint under {tmp_path}/quickstart/checkpoints: starting from step 0" in capsys.readouterr().err
    assert checkpoint(tmp_path / "quickstart/0001", 2)["global_step"] == 2


def test_last_passes_over_a_broken_newest_and_says_why(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = arguments(shards, tmp_path, "--checkpoints.every_n_steps=1", "--checkpoints.keep=3", steps=3)
    assert main(["fit", *fit]) == 0
    run = tmp_path / "quickstart/0001"
    newest, whole = run / "checkpoints/step-00000003.ckpt", checkpoint(run, 3)
    newest.write_bytes(newest.read_bytes()[:-1000])
    capsys.readouterr()
    assert main(["fit", *fit, "--ckpt_path=last"]) == 0
    said = capsys.readouterr()
    assert f"passed over {newest}: it is cut short at" in said.err
    assert f"resuming from {run}/checkpoints/step-00000002.ckpt" in said.out
    assert differences(checkpoint(run, 3)["state_dict"], whole["state_dict"]) == []


def test_last_passes_over_a_run_without_a_whole_checkpoint_and_says_so(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["fit", *arguments(shards, tmp_path)]) == 0
    older, newer = (tmp_path / "quickstart" / number for number in ("0001", "0002"))
    for file in (newer / "checkpoints").iterdir():
        file.write_bytes(b"no checkpoint")
    capsys.readouterr()
    assert main(["fit", *arguments(shards, tmp_path, "--ckpt_path=last", steps=3)]) == 0
    said = capsys.readouterr().out
    assert f"passed over the run {newer}: none of its checkpoints is whole" in said
    assert f"resuming from {older}/checkpoints/step-00000002.ckpt" in said
    assert checkpoint(older, 3)["global_step"] == 3


def test_a_finished_run_is_left_as_it_is_and_says_so(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = arguments(shards, tmp_path)
    assert main(["fit", *fit]) == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["fit", *fit, "--ckpt_path=last"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    assert "step 2 is the last one already: raise trainer.max_steps to go on" in capsys.readouterr().out


def test_a_branch_is_a_run_of_its_own(shards: Path, tmp_path: Path, tracked: str) -> None:
    assert main(["fit", *arguments(shards, tmp_path, tracked)]) == 0
    trunk = {path: path.read_bytes() for path in (tmp_path / "quickstart").rglob("*") if path.is_file()}
    start = tmp_path / "quickstart/0001/checkpoints/step-00000002.ckpt"
    assert main(["fit", *arguments(shards, tmp_path, tracked, "--name=b", f"--ckpt_path={start}", steps=4)]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "quickstart").rglob("*") if path.is_file()} == trunk
    assert [step for step, _ in metric(tmp_path / "b/0001", "train/loss")] == [3, 4]
    assert checkpoint(tmp_path / "b/0001", 4)["global_step"] == 4


def test_a_checkpoint_of_an_older_run_goes_on_in_that_run(shards: Path, tmp_path: Path) -> None:
    assert main(["fit", *arguments(shards, tmp_path)]) == 0
    assert main(["fit", *arguments(shards, tmp_path)]) == 0
    older = tmp_path / "quickstart/0001"
    more = f"--ckpt_path={older}/checkpoints/step-00000002.ckpt"
    assert main(["fit", *arguments(shards, tmp_path, more, steps=3)]) == 0
    assert [path.name for path in sorted((tmp_path / "quickstart").iterdir())] == ["0001", "0002"]
    assert checkpoint(older, 3)["global_step"] == 3


def test_a_refused_resume_leaves_the_run_as_it_was(
    shards: Path, tmp_path: Path, tracked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lrtrain.tracking.run_record.OWNER_PATIENCE", 0)
    fit = arguments(shards, tmp_path, tracked, "--checkpoints.every_n_steps=1")
    assert main(["fit", *fit]) == 0
    run = tmp_path / "quickstart/0001"
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    first = f"--ckpt_path={run}/checkpoints/step-00000001.ckpt"
    line = refusal(["fit", *fit, first, "--model.optimizers.hidden=torch.optim.Muon"], capsys)
    assert line.startswith(f"cannot resume from {run}/checkpoints/step-00000001.ckpt")
    owner = Spool(run)  # as a process that still trains there
    assert refusal(["fit", *fit, first], capsys).startswith(f"{run} is in use by another process")
    owner.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
