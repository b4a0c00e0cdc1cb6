"""Models of transformers whose layers are factorized: saved, loaded, and trained by the Trainer."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from lrtrain.checkpoint.huggingface.factorized_models import register
from lrtrain.constraints import ConstrainedOptimizer, find_factors, sct_for, spectron_for
from lrtrain.nn import LowRankLinear, factorize_, merge_

TOKENS = torch.arange(20).reshape(2, 10)
STEPS = 6


@pytest.fixture(autouse=True)
def registered() -> None:
    register()
    register()  # a second call does nothing


def llama(kind: Any = "low_rank", **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=60, **sizes, **heads, **changes))
    factorize_(model, rank_ratio=0.25, kind=kind)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("kind", ["low_rank", "spectral"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_the_factors_come_back_and_the_model_is_an_ordinary_one(kind: str, changes: Any, tmp_path: Path) -> None:
    model = llama(kind, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # as training leaves them
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert not again.is_quantized
    again.double().float().save_pretrained(tmp_path / "b")
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path / "b")), logits(model))
    assert len(merge_(again)) == 14
    again.save_pretrained(tmp_path / "c")
    assert "quantization_config" not in json.loads((tmp_path / "c/config.json").read_text())
    torch.testing.assert_close(logits(LlamaForCausalLM.from_pretrained(tmp_path / "c")), logits(model))


def test_without_this_package_transformers_refuses_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama().save_pretrained(tmp_path / "a")
    for mapping in (AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, "lrtrain")
    for kind in (AutoModelForCausalLM, LlamaForCausalLM):
        with pytest.raises(RuntimeError, match="You set `ignore_mismatched_sizes` to `False`"):
            kind.from_pretrained(tmp_path / "a")


def test_what_is_quantized_already_is_refused() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match="the model is quantized"):
        factorize_(model, rank=2)


def test_a_gguf_file_that_was_unpacked_is_an_ordinary_model(tmp_path: Path) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer
    from transformers.utils.quantization_config import GgufConfig

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=60, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    # As from_pretrained(…, gguf_file=…) leaves a model where no kernel computes with its blocks.
    model.hf_quantizer = AutoHfQuantizer.from_config(GgufConfig("a.gguf"), pre_quantized=False)
    model.config.quantization_config, model.is_quantized = model.hf_quantizer.quantization_config, True
    packed = copy.deepcopy(model)
    packed.lm_head.weight = nn.Parameter(torch.zeros(60, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="the model is quantized"):
        factorize_(packed, rank=2)
    factorize_(model, rank=2)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    trained(tmp_path / "run", model, spectron_for(model))


class Sequences(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 60, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


class Watch(TrainerCallback):
    """Notes how far orthonormal columns are off after each step, wherever the Trainer looks."""

    def __init__(self) -> None:
        self.off: list[float] = []

    def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        for parameter in find_factors(model)[1].values():
            x = parameter.detach()
            self.off.append(float((x.mT @ x - torch.eye(x.shape[1])).abs().max()))


def trained(
    folder: Path, model: LlamaForCausalLM, optimizer: ConstrainedOptimizer, start: Path | None = None, **more: Any
) -> tuple[list[dict[str, torch.Tensor]], Watch]:
    """The batches that a run drew, with accumulation, clipping, a warm-up and checkpoints."""
    batches: list[dict[str, torch.Tensor]] = []

    def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batches.append({key: torch.stack([item[key] for item in items]) for key in items[0]})
        return batches[-1]

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        max_grad_norm=0.1,
        warmup_steps=3,
        lr_scheduler_type="linear",
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )
    watch = Watch()
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Sequences(),
        data_collator=collate,
        optimizers=(optimizer, None),  # type: ignore[arg-type]
        callbacks=[watch],
    )
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    return batches, watch


MAKERS = {"low_rank": lambda model: spectron_for(model, lr=0.1), "spectral": lambda model: sct_for(model, lr=0.01)}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_trainer_does_what_a_plain_loop_does_and_goes_on_from_its_checkpoints(kind: Any, tmp_path: Path) -> None:
    model = llama(kind)
    plain = copy.deepcopy(model).train()
    batches, watch = trained(tmp_path / "run", model, MAKERS[kind](model))
    assert max(watch.off, default=0.0) < 1e-5
    assert bool(watch.off) == (kind == "spectral")

    optimizer = MAKERS[kind](plain)
    schedule = LambdaLR(optimizer, lambda step: step / 3 if step < 3 else (STEPS - step) / (STEPS - 3))
    for step in range(STEPS):
        for batch in batches[2 * step : 2 * step + 2]:
            (plain(**batch).loss / 2).backward()
        assert float(nn.utils.clip_grad_norm_(plain.parameters(), 0.1)) > 0.1
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for (name, ours), theirs in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5, msg=name)
    assert not torch.equal(logits(model), logits(llama(kind)))

    resumed = llama(kind)
    trained(tmp_path / "run", resumed, MAKERS[kind](resumed), tmp_path / "run/checkpoint-3")
    for (name, ours), theirs in zip(resumed.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_what_was_loaded_trains_in_the_trainer(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "a")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    before = copy.deepcopy(model)
    trained(tmp_path / "run", model, spectron_for(model, lr=0.1), bf16=True)
    layer, old = model.model.layers[0].mlp.up_proj, before.model.layers[0].mlp.up_proj
    assert type(layer) is LowRankLinear
    assert not torch.equal(layer.A, old.A)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / f"run/checkpoint-{STEPS}")
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_half_precision_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    llama().bfloat16().save_pretrained(tmp_path / "a")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        spectron_for(model)
    spectron_for(AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32))


def test_accelerate_does_what_a_plain_loop_does(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of a Trainer before, which may have computed in bfloat16
    model = llama()
    plain = copy.deepcopy(model)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    wrapped, optimizer = accelerator.prepare(model, spectron_for(model, lr=0.1))
    by_hand = spectron_for(plain, lr=0.1)
    data = Sequences()
    for number in range(8):
        batch = {key: torch.stack([data[2 * number + i][key] for i in range(2)]) for key in data[0]}
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(wrapped.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        (plain(**batch).loss / 2).backward()
        if number % 2:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            by_hand.step()
            by_hand.zero_grad()
    for ours, theirs in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.equal(logits(model), logits(llama()))


@pytest.mark.parametrize("kind", ["gpt_neox", "qwen2", "t5"])
def test_models_of_other_families_are_factorized_too(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **heads}
    if kind == "t5":
        sizes = {"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8, "dropout_rate": 0.0}
        sizes["decoder_start_token_id"] = 0
    names = {"gpt_neox": "AutoModelForCausalLM", "qwen2": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}
    maker = getattr(transformers, names[kind])
    config = transformers.AutoConfig.for_model(kind, vocab_size=60, tie_word_embeddings=True, **sizes)
    model = maker.from_config(config)
    inputs = {"input_ids": TOKENS, "labels": TOKENS}
    factorize_(model, rank=4)
    optimizer = spectron_for(model, lr=0.01)
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = maker.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        assert model(**inputs).loss < loss
