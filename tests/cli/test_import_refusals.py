"""What `lrtrain import` refuses: in a line, which leaves nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor

import llama_folder
import saved_model
from commandline import refusal
from import_command import imported, refused

WEIGHTS = "model.safetensors"


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
    assert said.stderr.splitlines() == [
        "import: reading owner/name …",
        "lrtrain: error: import owner/name: there is no such folder here, and the Hugging Face hub cannot be asked, "
        "nor is a copy in its cache: name a folder or a .gguf file of this machine, or import where there is a network",
    ]
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


def test_another_name_than_that_of_a_checkpoint_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("folder", "model.pt"):
        line = refusal(["import", str(source), "--out", out], capsys)
        assert line == f"--out {out}: name a file that ends in .ckpt; the recipe and the tokenizer go beside it"
    line = refusal(["import", str(source), "--out", "s3://bucket/model.ckpt"], capsys)
    assert line == "--out s3://bucket/model.ckpt: name a file of this machine; it can be copied to a store"
