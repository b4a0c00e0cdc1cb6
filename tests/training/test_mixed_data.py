"""A run on several data sets by weight: a held-out loss for each, the whole by weight, and a record that names all."""

import json
import math
from pathlib import Path

import pytest

import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.tracking.recorded import recorded_texts
from run_record import series

OVERLAY = """
data:
  path: null
  mix:
  - {path: SHARDS, weight: 3, name: words}
  - {path: numbers, weight: 1}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = toy.shards(tmp_path_factory.mktemp("data"))
    lines = [" ".join(str(i * j) for j in range(30)) for i in range(200)]
    (path.parent / "numbers.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    spec = PrepareSpec([str(path.parent / "numbers.jsonl")], tokenizer=str(path), val_fraction=0.2)
    prepare(spec, str(path.parent / "numbers"))
    return path


@pytest.fixture
def argv(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.chdir(shards.parent)
    overlay = tmp_path / "mix.yaml"
    overlay.write_text(OVERLAY.replace("SHARDS", str(shards)))
    return [*arguments(shards, tmp_path / "runs", "--trainer.logger=true", "--name=x"), f"--config={overlay}"]


def test_each_source_has_its_losses_and_epochs_and_the_whole_is_their_mean_by_weight(
    argv: list[str], tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *argv, "--trainer.max_steps=4"]) == 0
    run, said = tmp_path / "runs/x/0001", capsys.readouterr().out
    assert "data.mix: words 75.0% (" in said
    losses = {name: dict(series(run, f"val/{name}loss")) for name in ("", "words/", "numbers/")}
    assert list(losses[""]) == list(losses["words/"]) == [2, 4]
    for step, loss in losses[""].items():
        assert loss == pytest.approx(0.75 * losses["words/"][step] + 0.25 * losses["numbers/"][step], rel=1e-6)
    ratio = {name: Manifest.load(path).bytes_per_token() for name, path in (("words", str(shards)), ("n", "numbers"))}
    bits = losses[""][4] / math.log(2) / (0.75 * ratio["words"] + 0.25 * ratio["n"])
    assert dict(series(run, "val/bits_per_byte"))[4] == pytest.approx(bits, rel=1e-6)
    assert dict(series(run, "val/perplexity"))[4] == pytest.approx(math.exp(losses[""][4]), rel=1e-6)
    assert f"words {losses['words/'][4]:.4f}   numbers {losses['numbers/'][4]:.4f}" in said
    *_, (_, last) = recorded_texts(run)["held_out/by_position.json"]
    for name, rows in json.loads(last)["sources"].items():
        mean = sum(row["tokens"] * row["loss"] for row in rows) / sum(row["tokens"] for row in rows)
        assert mean == pytest.approx(losses[f"{name}/"][4], rel=1e-5)
    page = (run / "report.html").read_text()
    assert f"<td>numbers</td><td>{losses['numbers/'][4]:.4f}</td>" in page
    assert "numbers, step 4" in page
    assert "<td>val</td><td>numbers</td>" in page
    epoch = 12 / Manifest.load(str(shards)).train.blocks(toy.BLOCK + 1)
    assert dict(series(run, "epoch/words"))[4] == pytest.approx(epoch, rel=1e-6)
    assert main(["validate", *argv]) == 0
    assert f"val/numbers/loss     {losses['numbers/'][4]:.4f}\n" in capsys.readouterr().out


def test_the_record_names_every_source(argv: list[str], tmp_path: Path, shards: Path) -> None:
    assert main(["fit", *argv]) == 0
    run = tmp_path / "runs/x/0001"
    assert (run / "tokenizer.json").read_bytes() == (shards / "tokenizer.json").read_bytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    params = {key: value for line in lines for key, value in line.get("params", {}).items()}
    for name, path in (("words", str(shards)), ("numbers", "numbers")):
        assert params[f"manifest.train.{name}.tokens"] == str(Manifest.load(path).train.tokens)
    assert params["manifest.val.words.weight"] == "0.75"
    assert params["data.mix.1.path"] == "numbers"
    (text,) = [line["text"] for line in lines if line.get("artifact") == "data_manifest.json"]
    assert [source["path"] for source in json.loads(text)["sources"]] == [str(shards), "numbers"]


def test_a_resumed_run_goes_on_in_the_stream_and_says_when_the_weights_are_others(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *argv, "--trainer.max_steps=4", "--name=whole"]) == 0
    stop = ["--trainer.callbacks=commandline.StopAt", "--trainer.callbacks.batch=1"]
    with pytest.raises(SystemExit, match="143"):
        main(["fit", *argv, "--trainer.max_steps=4", *stop])
    capsys.readouterr()
    assert main(["fit", *argv, "--trainer.max_steps=4", "--ckpt_path=last"]) == 0
    assert "its stream begins anew" not in capsys.readouterr().out
    runs = [dict(series(tmp_path / "runs" / name / "0001", "train/loss")) for name in ("whole", "x")]
    assert runs[0] == runs[1]
    overlay = tmp_path / "mix.yaml"
    overlay.write_text(overlay.read_text().replace("weight: 3", "weight: 2"))
    assert main(["fit", *argv, "--trainer.max_steps=6", "--ckpt_path=last"]) == 0
    assert "not that of the checkpoint (weights): its stream begins anew" in capsys.readouterr().out


def test_what_a_mix_does_not_go_with_is_a_line(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, words in (
        (["--data.path=x"], "exactly one of data.path and data.mix must be given"),
        (["--data.prepare.train_vocab_size=300"], "data.prepare makes one data set"),
        (["--trainer.overfit_batches=2"], "trainer.overfit_batches takes the first blocks of one data set"),
        (["--data.mix=[{path: numbers, wieght: 1}]"], "wieght"),
        (["--data.mix=[{path: numbers}]"], "weight"),
        (["--data.mix=[{path: numbers, weight: much}]"], "weight"),
    ):
        assert words in refusal(["fit", *argv, *flags], capsys)


def test_an_export_of_lower_rank_tells_the_loss_on_the_mix(
    argv: list[str], tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *argv, "--trainer.max_steps=2"]) == 0
    loss = dict(series(tmp_path / "runs/x/0001", "val/loss"))[2]
    flags = ["--out", str(tmp_path / "out"), "--truncate-rank", "4"]
    assert main(["export", str(tmp_path / "runs"), *flags]) == 0
    assert f"held-out loss {loss:.4f} → " in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    assert f"| data | `{shards}` (weight 3), `numbers` (weight 1) |" in card
