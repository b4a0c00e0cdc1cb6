"""`lrtrain import`: what becomes of a Llama of transformers, and what is refused."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor

import llama_folder
import saved_model
from commandline import refusal
from lrtrain.checkpoint.single_file import read_whole
from lrtrain.cli.main import main
from lrtrain.config.trained_model import build_decoder, load
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SpectralLinear, projections

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
WEIGHTS = "model.safetensors"


def imported(source: Path, folder: Path, *flags: str) -> Decoder:
    """Imports, and loads the checkpoint as every command does."""
    assert main(["import", str(source), "--out", str(folder / "model.ckpt"), *flags]) == 0
    return load(folder / "model.ckpt")[0]


def refused(source: Path | str, folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The line that refuses an import, which leaves nothing."""
    out = folder / "out"
    line = refusal(["import", str(source), "--out", str(out / "model.ckpt"), *flags], capsys)
    assert not out.exists() or not list(out.iterdir())
    return line.removeprefix(f"import {source}: ")


def tokens(length: int = 60) -> Tensor:
    return torch.randint(0, saved_model.VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def differ(ours: Decoder, theirs: Any) -> float:
    """The largest difference of a logit, as a share of the largest."""
    x = tokens()
    expected = theirs(x).logits
    return float((ours.logits(ours(x)) - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Llama with grouped heads."""
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    llama_folder.save(folder)
    return folder


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(str(subprocess.run(["cp", "-r", source, tmp_path / "broken"], check=True) and tmp_path / "broken"))


# What is carried


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, **LLAMA3}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
        {"dtype": "bfloat16", "size": "20KB"},
        {"kind": "Mistral", "sliding_window": None},
        {"vocab_size": 384},
    ],
    ids=["grouped", "tied, other ε", "one head, other base", "llama3", "linear", "bf16, shards", "mistral", "padded"],
)
def test_the_checkpoint_computes_what_transformers_does_and_so_does_its_export(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    theirs = llama_folder.save(tmp_path / "source", **changes)
    ours = imported(tmp_path / "source", tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert differ(ours, theirs) < 1e-5
    said = capsys.readouterr().out
    assert f"weights         {changes.get('dtype', 'float32')} → float32" in said
    assert main(["export", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "again")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert differ(ours, again) < 1e-5
    for field in ("rope_parameters", "max_position_embeddings", "tie_word_embeddings", "vocab_size", "rms_norm_eps"):
        assert getattr(again.config, field) == getattr(theirs.config, field)
    assert (again.config.bos_token_id, again.config.eos_token_id) == (0, 0)


def test_generate_takes_the_tokens_that_transformers_takes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imported(source, tmp_path)
    capsys.readouterr()
    flags = ["--prompt", "a weather station", "--temperature", "0", "--max-new-tokens", "12"]
    assert main(["generate", str(tmp_path / "model.ckpt"), *flags]) == 0
    said = capsys.readouterr().out
    tokenizer, model = (kind.from_pretrained(source) for kind in (AutoTokenizer, AutoModelForCausalLM))
    prompt = tokenizer("a weather station", return_tensors="pt")
    expected = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert said == tokenizer.decode(expected[0], skip_special_tokens=True) + "\n"


def test_its_tokens_and_license_reach_the_export_and_what_ours_has_not_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    source = tmp_path / "tiny"
    llama_folder.save(source, vocab_size=384)
    llama_folder.save_tokenizer(source, begin="<s>", chat_template="{{ messages }}", pad_token="<s>")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    imported(source, tmp_path)
    said = capsys.readouterr().out
    assert "license apache-2.0\n" in said
    assert "tokenizer       " in said
    assert " the model began every text with <s>: lrtrain's data and generation begin with <|endoftext|>\n" in said
    assert main(["export", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "again")]) == 0
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "again"))
    text = "the weather station, 1987"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.convert_ids_to_tokens(after(text)["input_ids"])[0] == "<s>"
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert getattr(after, name) == getattr(before, name)
    card = (tmp_path / "again/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "apache-2.0, as tiny states it." in card
    assert "| read from | `tiny` (llama), stored there as float32 |" in card
    assert "pre-trained with lrtrain" not in card
    assert str(tmp_path) not in card


def test_a_gguf_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = llama_folder.model(tie_word_embeddings=True)
    llama_folder.save_gguf(tmp_path / "tiny.gguf", theirs)
    ours = imported(tmp_path / "tiny.gguf", tmp_path)
    assert differ(ours, theirs) < 1e-5
    said = capsys.readouterr().out
    assert "source          " in said
    assert "tiny.gguf   llama   license mit\n" in said
    assert "weights         F32 → float32" in said
    expected = saved_model.tokenizer().encode("a weather station").ids
    assert load(tmp_path / "model.ckpt")[1].encode("a weather station").ids == expected


# Factors


def lost(weight: Tensor, rank: int) -> float:
    squares = torch.linalg.svdvals(weight.double()) ** 2
    return float(squares[rank:].sum() / squares.sum())


@pytest.mark.parametrize(
    ("flags", "parts", "kind", "ranks"),
    [
        (["--rank", "30"], ("attention", "mlp"), LowRankLinear, {"query": 30, "key": 24, "up": 30, "down": 30}),
        (["--rank", "5", "--parts", "mlp", "--kind", "spectral"], ("mlp",), SpectralLinear, {"up": 5, "down": 5}),
        (["--rank-ratio", "0.5"], ("attention", "mlp"), LowRankLinear, {"query": 24, "key": 24, "up": 24, "down": 40}),
        (["--energy", "0.5", "--parts", "attention"], ("attention",), LowRankLinear, {}),
        (["--energy", "0.6", "--kind", "spectral"], ("attention", "mlp"), SpectralLinear, {}),
    ],
    ids=["rank", "spectral mlp", "ratio", "attention by energy", "spectral by energy"],
)
def test_projections_become_the_nearest_factors_and_the_table_says_what_is_lost(
    flags: list[str],
    parts: tuple[str, ...],
    kind: type,
    ranks: dict[str, int],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dense = projections(imported(source, tmp_path))
    (tmp_path / "second").mkdir()
    made = projections(imported(source, tmp_path / "second", *flags))
    said = capsys.readouterr().out
    table = [line.split() for line in said.splitlines() if re.match(r"(layer|[01])  ", line)]
    assert {one.rpartition(".")[2] for one in made if one.split(".")[2] in parts} == set(table[0][1:])
    for name, one in made.items():
        weight = dense[name].weight.detach()
        if name.split(".")[2] not in parts:
            assert torch.equal(one.weight, weight)
            continue
        assert type(one) is kind
        rank, last = one.rank, name.rpartition(".")[2]
        assert rank == ranks.get(last, rank)
        left = float((weight - one.materialize()).double().square().sum() / weight.double().square().sum())
        assert left == pytest.approx(lost(weight, rank), rel=1e-3, abs=1e-6)
        if "--energy" in flags:
            energy = float(flags[1])
            assert lost(weight, rank) <= 1 - energy < lost(weight, rank - 1)
        row = next(row for row in table if row[0] == name.split(".")[1])
        cells = [cell for cell in " ".join(row[1:]).split(" %") if cell]
        cell = cells[table[0].index(last) - 1]
        assert cell.strip() == (f"{rank}: " if "--energy" in flags else "") + f"{100 * left:.2f}"


def test_what_would_be_more_numbers_stays_dense_where_the_energy_chooses_the_rank(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {name: type(one) for name, one in projections(imported(source, tmp_path, "--energy", "0.88")).items()}
    assert {*kinds.values()} == {DenseLinear, LowRankLinear}
    said = capsys.readouterr().out
    assert said.count(" dense") == [*kinds.values()].count(DenseLinear)
    before, after = re.search(r"numbers +([\d,]+) → ([\d,]+)\n", said).groups()
    assert int(after.replace(",", "")) < int(before.replace(",", ""))
    line = refused(source, tmp_path, capsys, "--energy", "1")
    assert line == "--energy 1: no projection would have fewer numbers than its dense weight; give less"


def test_the_export_of_factors_says_where_they_are_from(source: Path, tmp_path: Path) -> None:
    imported(source, tmp_path, "--rank", "8")
    out = ["--out", str(tmp_path / "again"), "--factorized", "--dtype", "bfloat16"]
    assert main(["export", str(tmp_path / "model.ckpt"), *out]) == 0
    card = (tmp_path / "again/README.md").read_text()
    assert "read and written again by lrtrain with its projections as factors." in card
    found = re.search(r"\| factorized \| (.*) \|", card)[1]
    expected = r"14 of 14 projections of attention and mlp low-rank, rank 8, \d\d\.\d\d% of their energy lost"
    assert re.fullmatch(expected, found)
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert {*config["low_rank"].values()} == {8}


# Beside the checkpoint


@pytest.fixture(scope="module")
def shards(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared as the recipe of an import says, of other text."""
    from lrtrain.data.preparation import PrepareSpec, prepare

    folder = tmp_path_factory.mktemp("shards")
    imported(source, folder)
    lines = [f'{{"text": "{" ".join(saved_model.WORDS.split()[i % 7 :])} {i}"}}\n' for i in range(200)]
    (folder / "text.jsonl").write_text("".join(lines))
    recipe = yaml.safe_load((folder / "model.yaml").read_text())
    assert recipe["data"]["prepare"].pop("source") == ["stdlib"]
    prepare(PrepareSpec([f"{folder}/text.jsonl"], val_fraction=0.2, **recipe["data"]["prepare"]), f"{folder}/data")
    return folder / "data"


def of_recipe(folder: Path, shards: Path, *flags: str) -> list[str]:
    """Arguments of a run of the recipe beside `model.ckpt`, on these shards."""
    run = ["--config", f"{folder}/model.yaml", f"--data.path={shards}", "--data.prepare=null", f"--runs={folder}/runs"]
    run += ["--trainer.logger=false", "--trainer.precision=32-true", "--trainer.max_steps=2"]
    return [*run, "--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false", *flags]


@pytest.mark.parametrize(
    ("flags", "optimizer"),
    [((), "AdamW"), (("--energy", "0.88"), "Spectron"), (("--rank", "8", "--kind", "spectral"), "AdamW")],
    ids=["dense", "some low-rank", "spectral"],
)
def test_a_run_of_the_recipe_begins_with_the_weights(
    flags: tuple[str, ...],
    optimizer: str,
    source: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = imported(source, tmp_path, *flags)
    assert main(["fit", *of_recipe(tmp_path, shards)]) == 0
    said = capsys.readouterr().out
    count = len(ours.state_dict())
    assert f"init_from {tmp_path}/model.ckpt (step 0): {count} tensors as they are, 0 projections rewritten" in said
    assert re.search(rf"^hidden .* {optimizer} ", said, re.MULTILINE)
    dense = sum(isinstance(one, DenseLinear) for one in projections(ours).values())
    others = sum(map(int, re.findall(r"^\*\.\w+\.\*\.weight +(\d+) .* AdamW ", said, re.MULTILINE)))
    assert others == (dense if optimizer == "Spectron" else 0)
    trained, _ = load(tmp_path / "runs/model/0001/checkpoints/step-00000002.ckpt")
    moved = [not torch.equal(a, b) for a, b in zip(ours.parameters(), trained.parameters(), strict=True)]
    assert all(moved)


def test_a_run_of_factors_begins_with_the_dense_weights_too(
    source: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dense").mkdir()
    imported(source, tmp_path / "dense")
    imported(source, tmp_path, "--energy", "0.6")
    assert main(["fit", *of_recipe(tmp_path, shards, f"--init_from={tmp_path}/dense/model.ckpt")]) == 0
    assert ", 14 projections rewritten" in capsys.readouterr().out


def test_it_holds_weights_alone_which_validation_takes_and_a_run_does_not_resume(
    source: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported(source, tmp_path)
    recipe = (tmp_path / "model.yaml").read_text()
    flags = of_recipe(tmp_path, shards, f"--ckpt_path={tmp_path}/model.ckpt")
    (tmp_path / "model.yaml").write_text(recipe.replace(f"init_from: {tmp_path}/model.ckpt\n", ""))
    assert main(["validate", *flags]) == 0
    assert "val/loss" in capsys.readouterr().out
    assert refusal(["fit", *flags], capsys) == (
        f"--ckpt_path {tmp_path}/model.ckpt: lrtrain import wrote it, and it holds weights alone, no run that could go "
        "on: begin with them by --init_from"
    )


@pytest.mark.parametrize("flags", [(), ("--energy", "0.6"), ("--rank", "30", "--kind", "spectral")])
def test_the_recipe_has_the_decoder_of_the_checkpoint(source: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    ours = imported(source, tmp_path, *flags)
    beside = yaml.safe_load((tmp_path / "model.yaml").read_text())
    inside = yaml.safe_load(read_whole(tmp_path / "model.ckpt")["lrtrain"]["config"])
    assert beside.pop("init_from") == f"{tmp_path}/model.ckpt"
    assert beside == inside
    with torch.device("meta"):
        made = build_decoder(beside["model"]["decoder"])
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert {name: p.shape for name, p in made.named_parameters()} == shapes


# What is refused

NO_LLAMA = {
    "qwen2": ({"model_type": "qwen2"}, "model_type is 'qwen2', which lrtrain.nn.Decoder has not: its query, key and"),
    "unknown": (
        {"model_type": "mamba"},
        "model_type is 'mamba', which lrtrain.nn.Decoder has not: only llama and",
    ),
    "none": ({"model_type": None}, "model_type is None"),
    "classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is ['LlamaForSequenceClassif"),
    "code": ({"auto_map": {"AutoModelForCausalLM": "a.B"}}, "auto_map is {'AutoModelForCausalLM': 'a.B'}, which"),
    "quantized": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config is 'gptq'"),
    "attention bias": ({"attention_bias": True}, "attention_bias is True"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias is True"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "head_dim": (
        {"head_dim": 16},
        "head_dim is 16, which lrtrain.nn.Decoder has not: heads are hidden_size / heads = 12",
    ),
    "window": ({"model_type": "mistral", "architectures": None, "sliding_window": 64}, "sliding_window is 64"),
    "layers": ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is ['sliding_attention'"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_scaling is {"),
    "dynamic": ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is {"),
    "partial": ({"partial_rotary_factor": 0.5, "rope_parameters": None}, "partial_rotary_factor is 0.5"),
    "numbers": ({"hidden_size": 50}, "config.json: "),
}


@pytest.mark.parametrize(("changes", "why"), NO_LLAMA.values(), ids=NO_LLAMA)
def test_what_is_no_llama_is_refused_by_the_name_of_its_field(
    changes: dict[str, Any], why: str, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = broken / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert refused(broken, tmp_path, capsys).startswith(why)


def test_weights_that_are_not_all_there_are_refused(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(broken / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"

    def with_weights(changed: dict[str, Tensor]) -> str:
        save_file({key: w.contiguous() for key, w in changed.items()}, broken / WEIGHTS, {"format": "pt"})
        return refused(broken, tmp_path, capsys)

    lacking = {key: weight for key, weight in weights.items() if key != name}
    assert with_weights(lacking) == f"it lacks the weights {name}"
    biased = {**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}
    assert with_weights(biased) == "a Llama has no place for its weights model.layers.0.self_attn.q_proj.bias"
    assert "its weights cannot be read (" in with_weights({**weights, name: torch.zeros(81, 48)})
    weights[name][3, 3] = float("nan")
    assert with_weights(weights) == f"{name} holds NaN or infinite numbers"
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:5000])
    assert "its weights cannot be read (" in refused(broken, tmp_path, capsys)
    (broken / WEIGHTS).unlink()
    assert "its weights cannot be read (OSError: Error no file named model.safetensors" in refused(
        broken, tmp_path, capsys
    )


def test_a_missing_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama_folder.save(tmp_path / "source", size="50KB")
    shard = sorted((tmp_path / "source").glob("model-*.safetensors"))[1]
    shard.unlink()
    line = refused(tmp_path / "source", tmp_path, capsys)
    assert line.startswith("its weights cannot be read (")
    assert shard.name in line


def test_a_tokenizer_that_will_not_do_is_refused_and_another_can_be_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = Tokenizer(models.BPE({"a": 0, "b": 1, "</t>": 2}, []))
    llama_folder.save_tokenizer(broken, endless, eos_token="</t>")
    line = refused(broken, tmp_path, capsys)
    assert line.startswith(f"tokenizer of {broken} has no end-of-text token: add one of <|endoftext|> </s>")
    for file in broken.glob("*token*"):
        file.unlink()
    line = refused(broken, tmp_path, capsys)
    assert line.startswith("its tokenizer (--tokenizer FILE names a tokenizer.json instead) cannot be read (")
    larger = Tokenizer(models.BPE({f"<{i}>": i for i in range(400)} | {"</s>": 400}, []))
    larger.save(str(tmp_path / "larger.json"))
    line = refused(broken, tmp_path, capsys, "--tokenizer", str(tmp_path / "larger.json"))
    assert line == "the tokenizer has 401 tokens and vocab_size is 320: they do not fit"
    saved_model.tokenizer().save(str(tmp_path / "fits.json"))
    imported(broken, tmp_path, "--tokenizer", str(tmp_path / "fits.json"))


GGUF = {
    "scaling tensor": ({"rope_freqs.weight": torch.ones(6)}, "it holds rope_freqs.weight, Llama 3's RoPE scaling, whi"),
    "bias": ({"blk.0.attn_q.bias": torch.ones(48)}, "it holds blk.0.attn_q.bias, no weight of a Llama, which transfo"),
    "scaling": ({"rope.scaling.type": "linear"}, "llama.rope.scaling.type is 'linear', which transformers does not"),
    "no epsilon": ({"attention.layer_norm_rms_epsilon": None}, "its metadata lacks llama.attention.layer_norm_rms_ep"),
}


@pytest.mark.parametrize(("changes", "why"), GGUF.values(), ids=GGUF)
def test_what_transformers_leaves_out_of_a_gguf_is_refused(
    changes: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama_folder.save_gguf(tmp_path / "tiny.gguf", llama_folder.model(), **changes)
    assert refused(tmp_path / "tiny.gguf", tmp_path, capsys).startswith(why)


def test_a_path_to_nothing_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = "does not exist; name a folder, a .gguf file or a model on a hub"
    for path in ("./nowhere", f"{tmp_path}/nowhere", "a/b/c", f"{source}/model.gguf", "s3://bucket/model/x"):
        assert refused(path, tmp_path, capsys) == nothing
    assert refused(source / "config.json", tmp_path, capsys).startswith("expected a folder with config.json")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", tmp_path, capsys).startswith("the folder has no config.json; name a folder")
    (tmp_path / "empty/a.gguf").write_bytes(b"GGUF")
    line = refused(tmp_path / "empty", tmp_path, capsys)
    assert line == f"the folder has no config.json; name the file, as {tmp_path}/empty/a.gguf"
    line = refused(tmp_path / "empty/a.gguf", tmp_path, capsys)
    assert line.startswith("its configuration cannot be read (")


def test_a_name_on_a_hub_without_a_network_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lrtrain", "import", "owner/name", "--out", str(tmp_path / "model.ckpt")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 2
    first, line = said.stderr.splitlines()
    assert first == "import: reading owner/name …"
    assert line.startswith("lrtrain: error: import owner/name: its configuration cannot be read (")
    assert line.endswith("; without a network, name a folder or a file here")
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--rank", "4", "--energy", "0.5"],
            "give only one of --rank, --rank-ratio, --energy, got --rank and --energy",
        ),
        (["--energy", "1.5"], "--energy 1.5: must be in (0, 1]"),
        (["--rank-ratio", "0"], "--rank-ratio 0: must be in (0, 1]"),
        (["--rank", "49"], "--rank 49: the largest rank that a projection of this model has is 48"),
        (["--kind", "spectral"], "--kind spectral: give --rank, --rank-ratio or --energy with it"),
        (["--rank", "4", "--parts", "attention", "--energy", "nan"], "give only one of"),
        (["--energy", "nan"], "--energy nan: must be in (0, 1]"),
    ],
)
def test_ranks_that_cannot_be_meant_are_refused(
    flags: list[str], line: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(source, tmp_path, capsys, *flags).startswith(line)


@pytest.mark.parametrize("name", ["model.ckpt", "model.yaml", "model.tokenizer.json"])
def test_what_is_there_is_not_written_over(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    line = refusal(["import", str(source), "--out", str(tmp_path / "model.ckpt")], capsys)
    assert line == f"--out {tmp_path}/model.ckpt: {tmp_path}/{name} exists already; name a new file"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_another_name_than_that_of_a_checkpoint_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("folder", "model.pt"):
        line = refusal(["import", str(source), "--out", out], capsys)
        assert line == f"--out {out}: name a file that ends in .ckpt; the recipe and the tokenizer go beside it"
    line = refusal(["import", str(source), "--out", "s3://bucket/model.ckpt"], capsys)
    assert line == "--out s3://bucket/model.ckpt: name a file of this machine; it can be copied to a store"


def test_a_full_disk_leaves_nothing_half_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        line = refusal(["import", str(source), "--out", str(tmp_path / "deep/model.ckpt")], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert line == f"cannot write {tmp_path}/deep/model.ckpt: File too large; make room or name another place"
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_interrupted_import_leaves_nothing_half_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        assert (tmp_path / "model.ckpt").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("lrtrain.config.importing.write_atomically", interrupted)
    assert main(["import", str(source), "--out", str(tmp_path / "model.ckpt")]) == 130
    assert list(tmp_path.iterdir()) == []


# Memory


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("arguments", "copies"),
    [(("float32",), 1.1), (("bfloat16",), 1.3), (("gguf",), 1.5), (("bfloat16", "64"), 6.0)],
    ids=["mapped", "bfloat16", "gguf", "factorized"],
)
def test_no_more_than_a_copy_of_the_weights_is_in_memory(
    arguments: tuple[str, ...], copies: float, tmp_path: Path
) -> None:
    kind, *rank = arguments
    program = Path(__file__).parents[1] / "support/measured_import.py"
    command = [sys.executable, str(program), kind, str(tmp_path), *rank]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["peak"] < copies * measured["copy"]
