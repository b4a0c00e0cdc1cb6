"""Training is the same on one process and on many, whatever is sharded, copied or computed again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lrtrain.nn import Decoder
from ranks import on_ranks
from sharded_runs import model_of, run
from spectral_runs import LOW_RANK, VOCAB

STEPS = 20
CLOSE = 1e-5
TOKENS = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


def assert_same_course(one: dict[str, Any], many: dict[str, Any], tolerance: float = CLOSE) -> None:
    """Losses, gradient norms, and weights relative to their norm."""
    assert many["losses"] == pytest.approx(one["losses"], rel=tolerance)
    assert many["norms"] == pytest.approx(one["norms"], rel=10 * tolerance)
    assert max(one["norms"]) > 1, "no gradient was clipped"
    assert one["end"]["weights"].keys() == many["end"]["weights"].keys()
    for name, weight in one["end"]["weights"].items():
        difference = torch.linalg.vector_norm(many["end"]["weights"][name] - weight)
        assert difference <= tolerance * torch.linalg.vector_norm(weight), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Spectron on the attention's factors and SCT in the MLP, on one process."""
    return on_ranks(1, run, tmp_path_factory.mktemp("one"), "mixed", "single", STEPS)[0]


@pytest.mark.parametrize(("processes", "strategy"), [(2, "fsdp"), (4, "fsdp"), (2, "ddp")])
def test_many_processes_train_as_one(alone: dict[str, Any], processes: int, strategy: str, tmp_path: Path) -> None:
    outcomes = on_ranks(processes, run, tmp_path, "mixed", strategy, STEPS)
    assert_same_course(alone, outcomes[0])
    for name, weight in outcomes[0]["end"]["weights"].items():
        assert all(torch.equal(weight, other["end"]["weights"][name]) for other in outcomes), name


def test_copies_of_a_sharded_model_train_as_one(tmp_path: Path) -> None:
    one = on_ranks(1, run, tmp_path / "one", "mixed", "single", 5)[0]
    assert_same_course(one, on_ranks(4, run, tmp_path / "many", "mixed", "hsdp", 5)[0])


def test_factors_in_the_metric_of_each_other_train_alike_on_one_process_and_on_many(tmp_path: Path) -> None:
    one = on_ranks(1, run, tmp_path / "one", "low-rank, lora-muon", "single", STEPS)[0]
    for count in (2, 4):
        many = on_ranks(count, run, tmp_path / f"{count}", "low-rank, lora-muon", "fsdp", STEPS)[0]
        assert_same_course(one, many)


OPTIONS: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulate": 2},
    "activation checkpointing": {"model": {"activation_checkpointing": True}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_no_more_under_sharding_than_on_one_process(name: str, tmp_path: Path) -> None:
    one = on_ranks(1, _with_options, tmp_path / "one", "single", OPTIONS[name])[0]
    many = on_ranks(2, _with_options, tmp_path / "many", "fsdp", OPTIONS[name])[0]
    assert_same_course(one, many)


def test_in_bfloat16_what_is_gathered_is_what_autocast_makes_of_float32_weights(tmp_path: Path) -> None:
    # On the same batch: a sum over another share of it would round otherwise.
    options = {"precision": "bf16-mixed"}
    one = on_ranks(1, _with_options, tmp_path / "one", "single", options)[0]
    sharded = on_ranks(1, _with_options, tmp_path / "sharded", "fsdp", options)[0]
    assert_same_course(one, sharded, tolerance=0)
    tensors = [*sharded["end"]["weights"].values(), *(s["momentum"] for s in _of_factors(sharded))]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_a_block_that_recomputes_runs_twice_and_gives_the_same_gradients() -> None:
    gradients, calls = [], []
    for recompute in (False, True):
        model = model_of("low-rank", activation_checkpointing=recompute)
        model.configure_model()
        assert model.decoder is not None
        counted = [0]
        for norm in (block.mlp_norm for block in model.decoder.blocks):
            norm.register_forward_hook(lambda *_, counted=counted: counted.__setitem__(0, counted[0] + 1))
        model.decoder.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
        calls.append(counted[0])
    assert calls == [2, 4]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compile_compiles_what_a_block_computes_and_leaves_names_alone() -> None:
    plain, compiled = model_of("low-rank"), model_of("low-rank", compile=True)
    for model in (plain, compiled):
        model.configure_model()
        assert model.decoder is not None
    assert all(hasattr(block.forward, "_torchdynamo_orig_callable") for block in compiled.decoder.blocks)
    assert plain.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.slow
def test_compiled_blocks_train_as_plain_ones(tmp_path: Path) -> None:
    one = on_ranks(1, _with_options, tmp_path / "one", "single", {})[0]
    for processes, strategy in ((1, "single"), (2, "fsdp")):
        options = {"model": {"compile": True, "activation_checkpointing": strategy == "fsdp"}}
        compiled = on_ranks(processes, _with_options, tmp_path / strategy, strategy, options)[0]
        assert_same_course(one, compiled)


@pytest.mark.slow
def test_compiled_blocks_that_recompute_go_on_sharded_from_a_checkpoint_as_plain_ones_go_on(tmp_path: Path) -> None:
    plain = on_ranks(1, run, tmp_path / "plain", "low-rank", "single", 4)[0]
    options = {"model": {"compile": True, "activation_checkpointing": True}}
    on_ranks(2, _with_options, tmp_path / "first", "fsdp", {**options, "every": 2}, 2)
    checkpoint = tmp_path / "first/checkpoints/step-00000002.ckpt"
    resumed = on_ranks(2, _with_options, tmp_path / "second", "fsdp", {**options, "ckpt_path": checkpoint}, 4)[0]
    assert resumed["losses"] == pytest.approx(plain["losses"][2:], rel=1e-5)
    for name, weight in plain["end"]["weights"].items():
        assert torch.allclose(weight, resumed["end"]["weights"][name], atol=1e-6), name


@pytest.mark.slow
def test_as_many_blocks_as_a_model_has_are_compiled_once_for_training_and_once_for_validation() -> None:
    from torch._dynamo.testing import CompileCounter

    counter, decoder = CompileCounter(), Decoder(VOCAB, 32, 12, 2, 48, attention=LOW_RANK, mlp=LOW_RANK)
    torch._dynamo.reset()
    for block in decoder.blocks:
        block.forward = torch.compile(block.forward, backend=counter)  # as CausalLM does
    for _ in range(2):
        decoder.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        with torch.no_grad():
            decoder.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    # The second block differs from the first in its index, which is a number of any value from then on.
    assert counter.frame_count <= 4


def _of_factors(outcome: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    return [state for state in outcome["end"]["states"].values() if "momentum" in state]


def _with_options(root: Path, strategy: str, options: dict[str, Any], steps: int = 3) -> dict[str, Any]:
    return run(root, "low-rank", strategy, steps, **options)
