"""`lrtrain export`, and the group `export` of a run."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import saved_model
import toy
from commandline import arguments, refusal
from lrtrain.checkpoint.huggingface.modeling_factorized_llama import FactorizedLlamaForCausalLM
from lrtrain.checkpoint.single_file import read_whole, write_whole
from lrtrain.cli.main import main
from lrtrain.config.trained_model import load
from lrtrain.linalg import truncated_svd
from lrtrain.nn.projection import projections
from saved_model import DENSE, LOW_RANK, SPECTRAL, decoder_config

STEP = "checkpoints/step-00000002"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was to leave a folder in bfloat16."""
    runs = tmp_path_factory.mktemp("export") / "runs"
    assert main(["fit", *arguments(shards, runs, "--export.format=merged", "--export.dtype=bfloat16")]) == 0
    return runs / "quickstart/0001"


def loss_of(line: str) -> tuple[float, float]:
    before, _, after = line.partition("held-out loss ")[2].partition(" (")[0].partition(" → ")
    return float(before), float(after)


# A run's own folder


def test_a_run_leaves_the_folder_beside_its_last_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"{Path(STEP).name}.ckpt",
        f"{Path(STEP).name}.hf",
    ]
    assert yaml.safe_load((run / "config.yaml").read_text())["export"]["dtype"] == "bfloat16"
    config = json.loads((run / f"{STEP}.hf/config.json").read_text())
    assert (config["torch_dtype"], config["dtype"]) == ("bfloat16", "bfloat16")
    assert config["max_position_embeddings"] == toy.BLOCK


def test_the_command_writes_the_same_folder_and_takes_the_newest_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.parent.parent), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    for line in (
        f"checkpoint      {run / STEP}.ckpt\n",
        "rounding        bfloat16 moves the logits by",
        " of the time of the merged ones for 1 text at once, ",
        f"{tmp_path}/out\n",
    ):
        assert line in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in (run / f"{STEP}.hf").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.yaml",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in names - {"README.md"}:
        assert (tmp_path / "out" / name).read_bytes() == (run / f"{STEP}.hf" / name).read_bytes(), name
    assert (tmp_path / "out/recipe.yaml").read_text() == (run / "config.yaml").read_text()


def test_the_card_tells_recipe_data_tokens_losses_license_and_provenance(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--factorized", "--license", "apache-2.0"]) == 0
    page = (tmp_path / "out/README.md").read_text()
    head = yaml.safe_load(page.split("---")[1])
    assert (head["license"], head["library_name"]) == ("apache-2.0", "transformers")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = next(r["metrics"]["val/loss"] for r in reversed(records) if "val/loss" in r.get("metrics", {}))
    for text in (
        "# quickstart/0001, step 2",
        f"| tokens seen | {2 * 4 * toy.BLOCK:,} |",
        f"| held-out loss | {loss:.4f} nats per token, at step 2;",
        "| projections | 14 low-rank of rank 16 to 24 |",
        "| optimizer of the projections | Spectron, lr 0.035 |",
        "step-00000002.ckpt, sha256 ",
        "trust_remote_code=True` lets transformers run that file",
        'AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)',
    ):
        assert text in page, text
    merged = (run / f"{STEP}.hf/README.md").read_text()
    assert "trust_remote_code" not in merged
    assert "Not stated. Ask whoever trained it" in merged
    assert "license" not in yaml.safe_load(merged.split("---")[1])


def test_a_checkpoint_away_from_its_run_is_exported_and_what_is_unknown_is_said(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / f"{STEP}.ckpt", tmp_path / "alone.ckpt")
    assert main(["export", str(tmp_path / "alone.ckpt"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/README.md").read_text()
    assert "| held-out loss | unknown: the run's metrics.jsonl was not beside the checkpoint |" in page
    assert f"| tokens seen | {2 * 4 * toy.BLOCK:,} |" in page


def test_a_finished_run_that_is_started_again_writes_the_folder_that_it_lacks(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(run.parent.parent, runs)
    shutil.rmtree(runs / f"quickstart/0001/{STEP}.hf")
    again = arguments(shards, runs, "--export.format=factorized", "--ckpt_path=last")
    assert main(["fit", *again]) == 0
    folder = runs / f"quickstart/0001/{STEP}.hf"
    assert len(FactorizedLlamaForCausalLM.from_pretrained(folder).config.low_rank) == 14
    before = (folder / "README.md").stat().st_mtime_ns
    assert main(["fit", *again]) == 0
    assert (folder / "README.md").stat().st_mtime_ns == before


def test_a_folder_of_weights_that_the_run_has_left_behind_is_written_anew(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    merged = ["--export.format=merged", "--checkpoints.every_n_steps=1", "--checkpoints.keep=-1"]
    assert main(["fit", *arguments(shards, tmp_path, *merged)]) == 0
    folder = tmp_path / f"quickstart/0001/{STEP}.hf"
    before = load_file(folder / "model.safetensors")
    earlier = folder.with_name("step-00000001.ckpt")
    again = [f"--ckpt_path={earlier}", "--model.optimizers.hidden.lr=0.01"]
    assert main(["fit", *arguments(shards, tmp_path, *merged, *again)]) == 0
    after, name = load_file(folder / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    decoder, _ = load(folder.with_suffix(".ckpt"))
    torch.testing.assert_close(after[name], decoder.blocks[0].mlp.up.materialize().detach())
    assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--export.format=stock"], "export.format"),
        (["--export.format=merged", "--export.shard_size=5KB"], "export.shard_size 5KB: give at least 1MB"),
        (["--export.format=merged", "--export.shard_size=lots"], "export.shard_size lots: give an amount of memory"),
        (
            ["--export.format=merged", "--model.decoder.mlp=unexportable.Bent"],
            "export: unexportable.Bent (blocks.0.mlp.gate) has no dense weight to export",
        ),
    ],
)
def test_what_could_not_be_exported_is_refused_before_the_first_step(
    flags: list[str], line: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refusal(["fit", *arguments(shards, tmp_path / "runs", *flags)], capsys)
    assert not (tmp_path / "runs/quickstart").exists()


# Lower ranks


def test_the_loss_before_is_that_of_validate_and_a_truncation_is_the_best_of_its_rank(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *arguments(shards, tmp_path, f"--ckpt_path={run / STEP}.ckpt")]) == 0
    said = capsys.readouterr().out
    validated = next(float(line.split()[1]) for line in said.splitlines() if line.startswith("val/loss"))
    export = ["export", str(run), "--out", str(tmp_path / "out"), "--factorized", "--truncate-rank", "5"]
    assert main(export) == 0
    said = capsys.readouterr().out
    assert "truncated       14 of 14 projections to rank 5, mean rank 17.1 → 5.0; held-out loss" in said
    before, after = loss_of(said)
    assert before == pytest.approx(validated, abs=1e-4)
    assert abs(after - before) > 1e-3
    model = FactorizedLlamaForCausalLM.from_pretrained(tmp_path / "out")
    decoder, _ = load(run / f"{STEP}.ckpt")
    with torch.no_grad():
        weight = decoder.blocks[1].mlp.down.materialize()
        p, sigma, q = truncated_svd(weight, 5)
        down = model.model.layers[1].mlp.down_proj
        torch.testing.assert_close(down.A @ down.B.mT, p * sigma @ q.mT, rtol=0, atol=1e-5)
    page = (tmp_path / "out/README.md").read_text()
    assert f"held-out loss {before:.4f} → {after:.4f}" in page
    assert "| projections | 14 low-rank of rank 5 |" in page


@pytest.mark.parametrize(
    "kinds", [(DENSE, SPECTRAL), (LOW_RANK, DENSE)], ids=["dense and spectral", "low-rank and dense"]
)
def test_energy_leaves_the_smallest_rank_that_holds_it_and_dense_weights_only_where_that_is_less(
    kinds: tuple[Any, Any], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = load_tokens(shards)
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(*kinds), tokens, trainer={"limit_val_batches": 0})
    out = ["--out", str(tmp_path / "out"), "--data", str(shards), "--factorized"]
    assert main(["export", str(file), *out, "--energy", "0.8"]) == 0
    model = FactorizedLlamaForCausalLM.from_pretrained(tmp_path / "out")
    decoder, _ = load(file)
    ranks = {**model.config.low_rank, **model.config.spectral}
    from lrtrain.checkpoint.huggingface.llama_layout import llama_name

    shortened = 0
    for name, one in projections(decoder).items():
        squares = torch.linalg.svdvals(one.materialize().detach().double()) ** 2
        needed = int((squares.cumsum(0) / squares.sum() < 0.8).sum()) + 1
        if (
            type(one).__name__ == "DenseLinear"
            and needed * (one.in_features + one.out_features) >= one.in_features * one.out_features
        ):
            assert llama_name(name) not in ranks
        else:
            assert ranks[llama_name(name)] == needed
            shortened += 1
    assert f"truncated       {shortened} of 14 projections to 0.8 of the energy" in capsys.readouterr().out
    assert set(model.config.spectral) == {name for name in ranks if "mlp" in name and SPECTRAL in kinds}


def load_tokens(shards: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(shards / "tokenizer.json"))


def test_a_merged_folder_of_lower_rank_says_that_it_is_no_smaller(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--truncate-rank", "4"]) == 0
    assert (
        "the merged weights have as many numbers as before; --factorized keeps the factors" in capsys.readouterr().out
    )
    weight = load_file(tmp_path / "out/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert int(torch.linalg.matrix_rank(weight, rtol=1e-4)) == 4


# Mistakes


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--truncate-rank", "0"], "argument --truncate-rank: expected a whole number, at least 1"),
        (["--truncate-rank", "4", "--energy", "0.9"], "give either --truncate-rank or --energy, not both"),
        (["--energy", "1.5"], "--energy 1.5: must be in (0, 1]"),
        (["--energy", "nan"], "--energy nan: must be in (0, 1]"),
        (["--truncate-rank", "500"], "--truncate-rank 500: none of the 14 projections would have fewer numbers"),
        (
            ["--energy", "0.9", "--data", "nowhere"],
            "needs the held-out data of the run: nowhere holds no prepared data",
        ),
        (["--data", "nowhere"], "--data nowhere: it is for the loss before and after --truncate-rank or --energy"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--shard-size", "5"], "--shard-size 5: give an amount of memory with its unit"),
        (["--shard-size", "5KB"], "--shard-size 5KB: give at least 1MB"),
        (["--context", "0"], "argument --context: expected a whole number"),
        (["--context"], "argument --context: expected one argument; see lrtrain export --help"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    flags: list[str], line: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refusal(["export", str(run), "--out", str(tmp_path / "out"), *flags], capsys)
    assert list(tmp_path.iterdir()) == []


def test_shards_of_another_tokenizer_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    from lrtrain.data.preparation import PrepareSpec, prepare

    text = tmp_path / "other/text.txt"
    text.write_text("entirely different words make another tokenizer, " * 300)
    texts = tmp_path / "other/texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{i} {text.read_text()[:400]}"}) + "\n" for i in range(60)))
    prepare(PrepareSpec(source=[str(texts)], train_vocab_size=290, val_fraction=0.3), str(tmp_path / "shards"))
    flags = ["--out", str(tmp_path / "out"), "--truncate-rank", "4", "--data", str(tmp_path / "shards")]
    assert "is of another tokenizer than the data" in refusal(["export", str(run), *flags], capsys)


def test_what_is_no_checkpoint_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / f"{STEP}.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[:-1000])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.ckpt")
    write_whole({"weight": torch.zeros(2)}, tmp_path / "bare.ckpt")
    checkpoint = read_whole(run / f"{STEP}.ckpt")
    checkpoint["lrtrain"]["tokenizer"] = None
    write_whole(checkpoint, tmp_path / "mute.ckpt")
    for name, line in {
        "cut.ckpt": "it is cut short",
        "text.ckpt": "it is not a checkpoint",
        "foreign.ckpt": "it has no checksum, so lrtrain did not write it",
        "bare.ckpt": "it has no 'state_dict'; pass one of `lrtrain fit`",
        "mute.ckpt": "holds no tokenizer",
        "absent.ckpt": "does not exist: name a .ckpt file, a run, a run directory or a folder of runs",
    }.items():
        assert line in refusal(["export", str(tmp_path / name), "--out", str(tmp_path / "out")], capsys)
    assert not list(tmp_path.glob("out*"))


def test_a_full_disk_leaves_nothing_half_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)  # the kernel refuses to write on: EFBIG, as ENOSPC elsewhere
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        line = refusal(["export", str(run), "--out", str(tmp_path / "deep/out")], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert line.startswith(f"cannot write {tmp_path}/deep/out: File too large (it needs 0.4 MB, ")
    assert line.endswith("are free there); make room or name another folder")
    assert list((tmp_path / "deep").iterdir()) == []


# The factorized folder by itself

PROGRAM = """
import sys

sys.modules["lrtrain"] = None  # importing it fails from here on
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

folder, trust = sys.argv[1], {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
model = AutoModelForCausalLM.from_pretrained(folder, **trust)
with torch.no_grad():
    torch.save(model(torch.arange(20)[None]).logits, "logits.pt")
prompt = tokenizer("spectral norm of a ", return_tensors="pt")
texts = [model.generate(**prompt, max_new_tokens=9, do_sample=False, use_cache=cached) for cached in (True, False)]
assert torch.equal(*texts) and texts[0].shape[1] == prompt["input_ids"].shape[1] + 9
before = {name: p.detach().clone() for name, p in model.named_parameters()}
rows = [{"input_ids": list(range(i, i + 16)), "labels": list(range(i, i + 16))} for i in range(4)]
options = TrainingArguments("tuned", max_steps=2, learning_rate=1e-3, report_to=[], use_cpu=True, disable_tqdm=True)
Trainer(model, options, train_dataset=rows).train()
assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
model.save_pretrained("saved")
again = AutoModelForCausalLM.from_pretrained("saved", **trust)
saved = dict(again.named_parameters())
assert saved.keys() == before.keys() and all(torch.equal(saved[name], p) for name, p in model.named_parameters())
print(sorted({name.rpartition(".")[2] for name in saved}), len(again.config.low_rank), len(again.config.spectral))
"""


@pytest.mark.timeout(900)
def test_it_loads_generates_is_tuned_and_saved_where_there_is_no_lrtrain(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(LOW_RANK, SPECTRAL, tie_embeddings=True))
    assert main(["export", str(file), "--out", str(tmp_path / "out"), "--factorized"]) == 0
    (tmp_path / "empty").mkdir()
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=known | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "['A', 'B', 'U', 'V', 's', 'weight'] 8 6"
    decoder, _ = load(file)
    with torch.no_grad():
        ours = decoder.logits(decoder(torch.arange(20)[None]))
    torch.testing.assert_close(torch.load(tmp_path / "empty/logits.pt"), ours, rtol=0, atol=1e-4)


# Memory


@pytest.mark.timeout(900)  # 100 MB written, synced, and read again, by a program of its own
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("folder", "bfloat16"),
        pytest.param("folder", "float32", marks=pytest.mark.slow),
        pytest.param("file", "bfloat16", marks=pytest.mark.slow),
        pytest.param("merged", "float32", marks=pytest.mark.slow),
    ],
)
def test_there_is_never_more_than_one_copy_of_the_weights_in_memory(kind: str, dtype: str, tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "support/measured_export.py"
    command = [sys.executable, str(program), kind, dtype, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["copy"] > 1e8
    assert measured["peak"] < 1.25 * measured["copy"]
    assert {"README.md", "config.json"} < {path.name for path in (tmp_path / "out").iterdir()}
