"""`lrtrain fit --init_from`: a run that begins with the weights of another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import toy
from commandline import RECIPE, arguments, refusal
from lrtrain.checkpoint import remote_runs
from lrtrain.checkpoint.saved_weights import SavedWeights
from lrtrain.checkpoint.shard_folder import digest
from lrtrain.cli.main import main
from lrtrain.config.trained_model import read_trained
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.studies.doctor.first_weights import check_first_weights
from ranks import command_on_ranks

METHODS = RECIPE.parent / "methods"
STEP = "0001/checkpoints/step-00000002.ckpt"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of a dense model, and of one with factors."""
    runs = tmp_path_factory.mktemp("base")
    dense = [f"--config={METHODS / 'dense.yaml'}", "--name=dense"]
    assert main(["fit", *arguments(shards, runs, *dense)]) == 0
    assert main(["fit", *arguments(shards, runs, "--name=low_rank")]) == 0
    return runs


def fit(shards: Path, runs: Path, origin: Path | str | None, *more: str, steps: int = 2) -> list[str]:
    given = [] if origin is None else [f"--init_from={origin}"]
    return ["fit", *arguments(shards, runs, "--name=tuned", *given, *more, steps=steps)]


def losses(run: Path) -> dict[int, float]:
    """The held-out losses of a run by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"]["val/loss"] for line in lines if "val/loss" in line.get("metrics", {})}


def noted(run: Path) -> str:
    return yaml.safe_load((run / "config.yaml").read_text())["init_from"]


def weights(file: Path) -> dict[str, Any]:
    saved = SavedWeights(file)
    return {name: saved.read(name) for name in saved.shapes()}


def test_a_run_begins_where_the_other_ended_with_everything_else_fresh(
    shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit(shards, tmp_path, base / "low_rank")) == 0
    run, origin = tmp_path / "tuned/0001", base / "low_rank" / STEP
    assert losses(run)[0] == pytest.approx(losses(base / "low_rank/0001")[2], abs=1e-6)
    assert list(losses(run)) == [0, 2]
    said = capsys.readouterr().out
    assert f"init_from {origin} (step 2): 35 tensors as they are, 0 projections rewritten\n" in said
    assert f"began with      loss {losses(run)[0]:.4f}   step 0, {origin} (step 2)\n" in said
    text = f"{origin}#step=2,sha256={digest(origin)}"
    assert noted(run) == text
    assert yaml.safe_load(read_trained(tmp_path / "tuned" / STEP).recipe)["init_from"] == text
    assert '"artifact": "init_from.txt"' in (run / "metrics.jsonl").read_text()
    state = torch.load(tmp_path / "tuned" / STEP, weights_only=True)["optimizer_states"][0]["state"]
    steps = {int(values["step"]) for values in state.values() if "step" in values}
    assert steps == {2}, "the optimizer went on from the other run's state"


def test_the_record_gives_the_same_run_again_and_only_with_the_same_checkpoint(
    shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(base / "dense", tmp_path / "dense")
    assert main(fit(shards, tmp_path, tmp_path / "dense")) == 0
    assert main(["fit", "--config", str(tmp_path / "tuned/0001/config.yaml")]) == 0
    first, second = (weights(tmp_path / f"tuned/{run}/checkpoints/step-00000002.ckpt") for run in ("0001", "0002"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shutil.copy(tmp_path / "tuned" / STEP, tmp_path / "dense" / STEP)
    line = refusal(["fit", "--config", str(tmp_path / "tuned/0001/config.yaml")], capsys)
    assert line.startswith(f"--init_from {tmp_path / 'dense' / STEP}: it is another checkpoint than the one recorded")
    assert not (tmp_path / "tuned/0003").exists()


def test_a_restarted_run_goes_on_from_its_own_checkpoint(
    shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = fit(shards, tmp_path, base / "dense", "--ckpt_path=last")
    assert main(again) == 0  # of no run yet
    text = noted(tmp_path / "tuned/0001")
    whole = fit(shards, tmp_path, base / "dense", "--name=whole", steps=4)
    assert main(fit(shards, tmp_path, base / "dense", "--ckpt_path=last", steps=4)) == 0
    assert "projections rewritten" in capsys.readouterr().out
    assert main(fit(shards, tmp_path, base / "dense", "--ckpt_path=last", steps=6)) == 0
    assert main(fit(shards, tmp_path, None, "--ckpt_path=last", steps=7)) == 0
    assert "rewritten" not in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "tuned").iterdir()] == ["0001"]
    assert sorted(losses(tmp_path / "tuned/0001")) == [0, 2, 4, 6, 7]
    assert noted(tmp_path / "tuned/0001") == text
    assert main(whole) == 0


@pytest.mark.parametrize(("origin", "began"), [("low_rank", "from {}/dense/"), (None, "without it")])
def test_a_run_does_not_go_on_as_if_it_had_begun_elsewhere(
    origin: str | None, began: str, shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit(shards, tmp_path, base / "dense" if origin else None)) == 0
    file = tmp_path / "tuned" / STEP
    asked = base / (origin or "dense")
    for resumed in ("last", str(file)):
        line = refusal(fit(shards, tmp_path, asked, f"--ckpt_path={resumed}", steps=4), capsys)
        assert line.startswith(f"--init_from {asked}: the run of {file} began {began.format(base)}")


def test_data_of_another_tokenizer_or_vocabulary_are_refused(
    shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{i} quick brown foxes {i}"}}\n' for i in range(999)))
    spec = PrepareSpec(source=[str(tmp_path / "text.jsonl")], train_vocab_size=toy.VOCABULARY, val_fraction=0.2)
    prepare(spec, str(tmp_path / "others"))
    line = refusal(fit(tmp_path / "others", tmp_path / "runs", base / "dense"), capsys)
    assert line.startswith(f"checkpoint {base / 'dense' / STEP} (step 2) is of another tokenizer than the data: its")
    line = refusal(fit(shards, tmp_path / "runs", base / "dense", "--model.decoder.vocab_size=310"), capsys)
    assert "model.decoder: vocab_size is 310, its 300; set what it has" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("nowhere.ckpt", "nowhere.ckpt does not exist: name a .ckpt file"),
        ("", "--init_from is empty"),
        ("text.ckpt", "--init_from {}/text.ckpt: it is not a checkpoint; name a whole .ckpt"),
        ("cut.ckpt", "--init_from {}/cut.ckpt: it is cut short at 1000 bytes; name a whole .ckpt"),
        ("empty", "no whole checkpoint under {}/empty"),
        ("hf", "--init_from {}/hf is a model of transformers: lrtrain import makes a checkpoint of it"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    asked: str, line: str, shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint, but a text")
    (tmp_path / "cut.ckpt").write_bytes((base / "dense" / STEP).read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    found = refusal(fit(shards, tmp_path / "runs", tmp_path / asked if asked else ""), capsys)
    assert line.format(tmp_path) in found
    assert not (tmp_path / "runs").exists()


def test_only_fit_takes_the_flag_and_the_record_of_a_run_hinders_no_other_command(
    shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit(shards, tmp_path, base / "dense")) == 0
    config = ["--config", str(tmp_path / "tuned/0001/config.yaml")]
    assert main(["validate", *config]) == 0
    assert f"checkpoint {tmp_path / 'tuned' / STEP}" in capsys.readouterr().out
    line = refusal(["validate", *config, f"--init_from={base}"], capsys)
    assert line == "--init_from: validate takes the weights of a run's checkpoint: name it by --ckpt_path"
    assert main(["plan", *config]) == 0
    assert main(["compare", "tuned", "--runs", str(tmp_path)]) == 0


def test_the_weights_come_from_a_store_by_their_url(
    shards: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_runs, "CACHE", tmp_path / "cache")
    store = f"file://{base}"
    assert main(fit(shards, tmp_path / "runs", f"{store}/dense")) == 0
    assert noted(tmp_path / "runs/tuned/0001").startswith(f"{store}/dense/{STEP}#step=2,sha256=")
    assert main(fit(shards, tmp_path / "runs", f"{store}/dense", "--ckpt_path=last", steps=3)) == 0


def test_a_sharded_checkpoint_begins_a_sharded_run_and_one_on_a_single_process(shards: Path, tmp_path: Path) -> None:
    whole = "--trainer.limit_val_batches=1.0"
    sharded = [f"--config={RECIPE.parent / 'parallel/fsdp.yaml'}", "--trainer.precision=32-true", whole]
    for outcome in command_on_ranks(2, ["fit", *arguments(shards, tmp_path, *sharded, "--name=base")]):
        assert outcome[0] == 0, outcome[2]
    assert (tmp_path / "base" / STEP).is_dir()
    spectral = f"--config={METHODS / 'sct_polar.yaml'}"
    for outcome in command_on_ranks(2, fit(shards, tmp_path, tmp_path / "base", *sharded, spectral, "--name=many")):
        assert outcome[0] == 0, outcome[2]
    assert main(fit(shards, tmp_path, tmp_path / "base", spectral, whole, "--name=one")) == 0
    assert losses(tmp_path / "many/0001")[0] == pytest.approx(losses(tmp_path / "one/0001")[0], abs=1e-5)


def test_fine_tuning_of_a_base_model_on_documents(base: Path, tmp_path: Path) -> None:
    """The example of docs/warm_start.md: prepare with the base's tokenizer, begin with its weights."""
    words = "treaty clause party notice court remedy"
    text = [f"the {a} of the {b} and a {c}" for a in words.split() for b in words.split() for c in words.split()]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": " ".join([one] * 3)}) + "\n" for one in text))
    tokenizer = base / "low_rank/0001/tokenizer.json"
    made = ["--source", str(tmp_path / "mine.jsonl"), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "mine")]
    assert main(["prepare", *made]) == 0
    config = ["--config", str(base / "low_rank/0001/config.yaml"), "--name=tuned", f"--runs={tmp_path}"]
    own = [f"--data.path={tmp_path / 'mine'}", "--data.prepare=null", "--trainer.max_steps=30"]
    tuned = ["--model.optimizers.other.lr=0.003", "--trainer.val_check_interval=30", "--trainer.limit_val_batches=4"]
    assert main(["fit", *config, *own, *tuned, f"--init_from={base / 'low_rank'}"]) == 0
    course = losses(tmp_path / "tuned/0001")
    assert course[30] < course[0] - 1


def test_the_doctor_looks_at_the_checkpoint(base: Path) -> None:
    decoder = yaml.safe_load((base / "low_rank/0001/config.yaml").read_text())["model"]["decoder"]
    for heads, status, line in ((2, "pass", "step 2, fits model.decoder"), (4, "fail", "heads is 4, its 2")):
        decoder["init_args"]["heads"] = heads
        (found,) = check_first_weights(str(base / "dense"), decoder)
        assert (found.check, found.status) == ("init_from", status)
        assert line in found.found
