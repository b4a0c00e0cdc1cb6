"""A checkpoint as a folder for transformers: what it loads computes what ours computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM

import saved_model
from lrtrain.checkpoint.huggingface import exported_folder, llama_layout
from lrtrain.checkpoint.huggingface.exported_folder import Written, check_target, write_folder
from lrtrain.checkpoint.huggingface.modeling_factorized_llama import FactorizedLlamaForCausalLM
from lrtrain.config.trained_model import load
from lrtrain.nn.self_guided import release
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import alone
from saved_model import DENSE, LOW_RANK, SELF_GUIDED, SPECTRAL, VOCABULARY, decoder_config

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "multi-query, other rope base": {"kv_heads": 1, "rope_base": 500.0},
    "tied": {"tie_embeddings": True},
    "other epsilon": {"norm_eps": 1e-2},
    "padded vocabulary": {"vocab_size": 384},
}
KINDS: dict[str, tuple[Any, Any]] = {
    "dense": (DENSE, DENSE),
    "low-rank": (LOW_RANK, LOW_RANK),
    "spectral": (SPECTRAL, SPECTRAL),
    "dense and spectral": (DENSE, SPECTRAL),
    "low-rank and spectral": (LOW_RANK, SPECTRAL),
    "self-guided": (SELF_GUIDED, SELF_GUIDED),
    "plain linear": ({"class_path": "torch.nn.Linear", "init_args": {"bias": False}}, LOW_RANK),
}


def export(file: Path, out: Path, keep: bool = False, dtype: str = "float32", shard: float = 5e9) -> Written:
    decoder, tokenizer = load(file)
    return write_folder(decoder, tokenizer, out, 64, keep, dtype, shard, lambda written: {})


def our_logits(file: Path, tokens: Tensor) -> Tensor:
    decoder, _ = load(file)
    with torch.no_grad():
        return decoder.logits(decoder(tokens))


def same_logits(file: Path, model: nn.Module) -> None:
    tokens = torch.randint(0, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours, theirs = our_logits(file, tokens), model(tokens).logits
    assert float(ours.std()) > 0.5
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


# Merged


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_stock_llama_has_the_logits_of_the_checkpoint(changes: dict[str, Any], tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(LOW_RANK, **changes))
    written = export(file, tmp_path / "out")
    model, told = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: list(found) for name, found in told.items() if found} == {}
    same_logits(file, model)
    assert written.parameters == sum(p.numel() for p in model.parameters())
    assert written.difference < written.bound / 10
    config = model.config
    assert (config.tie_word_embeddings, config.rms_norm_eps) == (
        changes.get("tie_embeddings", False),
        changes.get("norm_eps", 1e-5),
    )
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": changes.get("rope_base", 10000.0)}
    assert (config.num_key_value_heads, config.vocab_size) == (
        changes.get("kv_heads", 4),
        changes.get("vocab_size", VOCABULARY),
    )
    assert (config.max_position_embeddings, config.dtype, config.architectures) == (
        64,
        torch.float32,
        ["LlamaForCausalLM"],
    )
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, None)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_projections_of_every_kind_are_merged(kinds: tuple[Any, Any], tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(*kinds))
    export(file, tmp_path / "out")
    same_logits(file, LlamaForCausalLM.from_pretrained(tmp_path / "out"))


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_weights_of_another_dtype_are_ours_rounded_and_the_check_is_as_tight(
    dtype: str, step: float, tmp_path: Path
) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(SPECTRAL))
    written = export(file, tmp_path / "out", dtype=dtype)
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {w.dtype for w in weights.values()} == {getattr(torch, dtype)}
    decoder, _ = load(file)
    exact = decoder.get_submodule("blocks.1.mlp.down").materialize().detach()
    rounded = weights["model.layers.1.mlp.down_proj.weight"].float()
    assert 0 < float(((rounded - exact) / exact).abs().max()) <= step
    assert written.difference < written.bound / 10 < written.rounded
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_shards_are_no_larger_than_asked_and_name_every_tensor_once(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(LOW_RANK))
    whole, most = tmp_path / "whole", 70_000
    export(file, whole)
    assert [path.name for path in whole.glob("model*")] == ["model.safetensors"]
    written = export(file, tmp_path / "out", shard=most)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == written.shards > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    expected, found = load_file(whole / "model.safetensors"), {}
    for name in shards:
        tensors = load_file(tmp_path / "out" / name)
        assert sum(t.nbytes for t in tensors.values()) <= most
        assert {index["weight_map"][key] for key in tensors} == {name}
        with safe_open(tmp_path / "out" / name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        found |= tensors
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    same_logits(file, LlamaForCausalLM.from_pretrained(tmp_path / "out"))


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(LOW_RANK))
    written = export(file, tmp_path / "out", shard=1000)
    assert written.shards == 2 * (7 + 1) + 3, "each matrix and the last norm; the two norms of a block share one"


# Factorized


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_factors_are_kept_and_what_has_none_stays_dense(kinds: tuple[Any, Any], tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(*kinds, kv_heads=2))
    written = export(file, tmp_path / "out", keep=True)
    model, told = FactorizedLlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: list(found) for name, found in told.items() if found} == {}
    same_logits(file, model)
    decoder, _ = load(file)
    guided = SELF_GUIDED in kinds
    assert written.parameters == sum(p.numel() for p in model.parameters())
    assert (written.parameters == sum(p.numel() for p in decoder.parameters())) is not guided
    names = [name for name, _ in model.named_parameters() if "layers.0.mlp.up_proj" in name]
    parts = {LOW_RANK["class_path"]: "AB", SPECTRAL["class_path"]: "UsV"}.get(kinds[1]["class_path"], ["weight"])
    assert [name.rpartition(".")[2] for name in names] == [*parts]


def test_a_self_guided_projection_without_its_dense_part_is_low_rank(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(SELF_GUIDED))
    decoder, _ = load(file)
    release(decoder)
    state = {f"decoder.{name}": w for name, w in decoder.state_dict().items()}
    file = saved_model.save(tmp_path / "b.ckpt", decoder_config(SELF_GUIDED), state_dict=state)
    export(file, tmp_path / "out", keep=True)
    model = FactorizedLlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert set(model.config.low_rank.values()) == {7}
    assert len(model.config.low_rank) == 14
    same_logits(file, model)


def test_transformers_makes_fresh_factors_whose_products_have_the_usual_scale(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(LOW_RANK, SPECTRAL))
    export(file, tmp_path / "out", keep=True)
    config = FactorizedLlamaForCausalLM.config_class.from_pretrained(tmp_path / "out")
    torch.manual_seed(0)
    layer = FactorizedLlamaForCausalLM(config).model.layers[0]
    query, up = layer.self_attn.q_proj, layer.mlp.up_proj
    with torch.no_grad():
        deviations = [float((query.A @ query.B.mT).std()), float(((up.V * up.s) @ up.U.mT).std())]
    assert deviations == pytest.approx([0.02, 0.02], rel=0.3)


# The tokenizer


def sentence_piece() -> Tokenizer:
    """Of Llama's kind: begins words with ▁, and puts `<s>` before a text unless it is told not to."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "▁a", "▁b"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [saved_model.tokenizer(), sentence_piece()], ids=["byte-level", "sentence piece"])
def test_transformers_makes_the_tokens_of_training(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE), tokenizer)
    export(file, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("a façade of 3 stations", " beginning\n\twith blanks ", "", "日本 𝒳"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found = theirs(text)
        assert found["input_ids"] == ids
        assert set(found) == {"input_ids", "attention_mask"}
        assert theirs.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    assert theirs.bos_token == theirs.eos_token == tokenizer.id_to_token(theirs.eos_token_id)
    assert theirs.eos_token in ("<|endoftext|>", "</s>")
    assert theirs.pad_token is None
    assert theirs.model_max_length == 64


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE, vocab_size=200))
    with pytest.raises(UserError, match=r"tokenizer has 3.. tokens and the model embeds 200"):
        export(file, tmp_path / "out")


# What is refused, and what is left


def own(name: str) -> dict[str, str]:
    return {"class_path": f"unexportable.{name}"}


@pytest.mark.parametrize(
    ("decoder", "keep", "line"),
    [
        (decoder_config(own("Wrong")), False, r"Wrong \(blocks.0.attention.query\) computes something else than its"),
        (decoder_config(own("Bent")), True, r"Bent \(blocks.0.attention.query\) computes something else than its"),
        (decoder_config(own("Bent")), False, r"Bent \(blocks.0.attention.query\) has no dense weight to export: give"),
        (decoder_config(DENSE, own("NoWeight")), True, r"NoWeight \(blocks.0.mlp.gate\) has no dense weight to export"),
        (
            decoder_config(DENSE, {"class_path": "torch.nn.Linear"}),
            False,
            r"torch.*Linear \(blocks.0.mlp.gate\) has no",
        ),
        ({**decoder_config(DENSE), **own("OtherDecoder")}, False, "OtherDecoder, which may compute anything"),
    ],
)
def test_what_is_no_llama_is_one_line_and_leaves_nothing(
    decoder: dict[str, Any], keep: bool, line: str, tmp_path: Path
) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder)
    with pytest.raises(UserError, match=line):
        export(file, tmp_path / "out", keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt"]


def spoiled(file: Path, name: str, value: float) -> Path:
    decoder, _ = load(file)
    state = {f"decoder.{key}": w.clone() for key, w in decoder.state_dict().items()}
    state[f"decoder.{name}"][0] = value
    return saved_model.save(file.with_name("spoiled.ckpt"), decoder_config(DENSE), state_dict=state)


@pytest.mark.parametrize(
    ("value", "dtype", "line"),
    [
        (float("nan"), "float32", "up_proj.weight holds NaN, infinities or numbers beyond float32"),
        (1e6, "float16", "up_proj.weight holds NaN, infinities or numbers beyond float16"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, dtype: str, line: str, tmp_path: Path) -> None:
    file = spoiled(saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE)), "blocks.1.mlp.up.weight", value)
    with pytest.raises(UserError, match=line):
        export(file, tmp_path / "out", dtype=dtype)
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "spoiled.ckpt"}


@pytest.mark.parametrize("entry", [{"rms_norm_eps": 1e-4}, {"rope_theta": 9000.0}, {"rope_parameters": None}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_that_computes_something_else_does_not_pass(
    entry: dict[str, Any], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = llama_layout.llama_config

    def wrong(*arguments: Any) -> dict[str, Any]:
        config = right(*arguments) | entry
        return (
            config
            if "rms_norm_eps" in entry
            else config | {"rope_parameters": {"rope_type": "default", "rope_theta": 9e3}}
        )

    monkeypatch.setattr(llama_layout, "llama_config", wrong)
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(LOW_RANK))
    with pytest.raises(UserError, match=r"transformers' logits differ from ours by up to .*: nothing was written"):
        export(file, tmp_path / "out", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/model-00001-of-00009.safetensors").write_bytes(b"half")
    export(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "out"]
    assert not list((tmp_path / "out").glob("*-of-*"))


def test_another_export_to_the_same_folder_is_kept_out_until_it_has_ended(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/model.safetensors").write_bytes(b"another's")
    with alone(tmp_path / ".out.lock", "busy"), pytest.raises(UserError, match="another process writes it just now"):
        export(file, tmp_path / "out")
    assert (tmp_path / "out.partial/model.safetensors").read_bytes() == b"another's"
    export(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "out"]
    with pytest.raises(UserError, match="exists already; name a new folder"):
        export(file, tmp_path / "out")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_folder.importlib.util, "find_spec", lambda name: None if name == "safetensors" else 1)
    with pytest.raises(UserError, match=r"needs safetensors, which is not installed: pip install 'lrtrain\[hf\]'"):
        exported_folder.check_packages()


def test_a_folder_that_is_there_is_not_touched_unless_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").write_text("")
    (tmp_path / "empty").mkdir()
    for taken in ("full", "full/a"):
        with pytest.raises(UserError, match="exists already; name a new folder"):
            check_target(tmp_path / taken)
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE))
    export(file, check_target(tmp_path / "empty"))
    assert (tmp_path / "empty/config.json").is_file()
