"""The weights of a checkpoint in a decoder whose projections are written in another way."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import saved_model
import spectral_runs
from lrtrain.checkpoint.shard_folder import write_sharded
from lrtrain.checkpoint.single_file import read_whole
from lrtrain.config.init_from import find_origin, warm_start
from lrtrain.config.trained_model import build_decoder, read_trained
from lrtrain.linalg import truncated_svd
from lrtrain.nn import Decoder, SelfGuidedLinear
from lrtrain.nn.projection import projections
from lrtrain.optim import Optimizers, WarmupCosine
from lrtrain.runtime.errors import UserError
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.warm_start import WarmStart
from ranks import on_ranks
from saved_model import DENSE, LOW_RANK, SELF_GUIDED, SPECTRAL, decoder_config
from sharded_runs import STRATEGIES, Losses, Share

TOKENS = torch.arange(24).reshape(2, 12)
KINDS = {"dense": DENSE, "low-rank": LOW_RANK, "spectral": SPECTRAL, "self-guided": SELF_GUIDED}
CPU = torch.device("cpu")


def made(kind: dict[str, Any], rank: int) -> dict[str, Any]:
    return kind if kind is DENSE else {**kind, "init_args": {"rank": rank}}


def started(file: Path, decoder: dict[str, Any]) -> WarmStart:
    return warm_start(*find_origin(str(file)), decoder)


def begun(file: Path, decoder: dict[str, Any]) -> tuple[Decoder, WarmStart]:
    beginning = started(file, decoder)
    with torch.device(beginning.made_on):
        model = build_decoder(decoder)
    beginning.fill(model, CPU)
    return model.eval(), beginning


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(TOKENS))


@pytest.mark.parametrize("goal", KINDS)
@pytest.mark.parametrize("start", KINDS)
def test_a_weight_stays_what_it_is_in_whatever_way_it_is_written(start: str, goal: str, tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(made(KINDS[start], 8)))
    rank = 48 if start in ("dense", "self-guided") else 8
    source = read_trained(file).decoder
    decoder, beginning = begun(file, decoder_config(made(KINDS[goal], rank)))
    torch.testing.assert_close(logits(decoder), logits(source), rtol=1e-4, atol=2e-4)
    same = start == goal and start != "self-guided"
    assert f"{0 if same else 14} projections rewritten" in beginning.report
    if start == goal == "dense":
        assert torch.equal(logits(decoder), logits(source))
    for layer in projections(decoder).values():
        for x in layer.orthonormal():
            torch.testing.assert_close(x.mT @ x, torch.eye(x.shape[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("goal", ["low-rank", "spectral", "self-guided"])
def test_a_lower_rank_is_the_best_approximation_and_its_energy_is_told(goal: str, tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE))
    source, (decoder, beginning) = read_trained(file).decoder, begun(file, decoder_config(made(KINDS[goal], 5)))
    shares = []
    for (name, layer), old in zip(projections(decoder).items(), projections(source).values(), strict=True):
        p, sigma, q = truncated_svd(old.weight.detach(), 5)
        torch.testing.assert_close(layer.materialize(), (p * sigma) @ q.mT, rtol=1e-4, atol=1e-5)
        if name.endswith("mlp.up"):
            shares.append(float(sigma.square().sum() / old.weight.detach().square().sum()))
    kind = type(layer).__name__
    row = next(line for line in beginning.report.splitlines() if line.startswith("blocks.*.mlp.up"))
    assert row.split() == [
        "blocks.*.mlp.up",
        "DenseLinear",
        kind,
        "5",
        f"{sum(shares) / 2:.2%}",
        f"{min(shares):.2%}",
    ]


def test_a_self_guided_decoder_begins_anew_whatever_of_it_was_saved(tmp_path: Path) -> None:
    config = decoder_config(SELF_GUIDED)
    released = build_decoder(config)
    for module in released.modules():
        if isinstance(module, SelfGuidedLinear):
            module.release()
    state = {f"decoder.{name}": weight for name, weight in released.state_dict().items()}
    file = saved_model.save(tmp_path / "a.ckpt", config, state_dict=state)
    decoder, _ = begun(file, config)
    for layer in projections(decoder).values():
        torch.testing.assert_close(layer.W, layer.A @ layer.B.mT)
        assert float(layer.alpha) == 0.5
    torch.testing.assert_close(logits(decoder), logits(released.eval()), rtol=1e-4, atol=1e-4)


def test_bases_that_16_bit_left_askew_are_orthonormal_again_without_another_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = decoder_config(SPECTRAL)
    halved = {f"decoder.{name}": w.to(torch.bfloat16) for name, w in build_decoder(config).state_dict().items()}
    file = saved_model.save(tmp_path / "a.ckpt", config, state_dict=halved)
    decoder, beginning = begun(file, config)
    assert "14 projections rewritten" in beginning.report
    for layer in projections(decoder).values():
        torch.testing.assert_close(layer.U.mT @ layer.U, torch.eye(9), rtol=0, atol=1e-5)
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
    source = build_decoder(config).eval()
    source.load_state_dict({name.removeprefix("decoder."): w for name, w in halved.items()})
    torch.testing.assert_close(logits(decoder), logits(source), rtol=1e-4, atol=1e-4)


def test_columns_that_would_never_train_are_refused_or_told(tmp_path: Path) -> None:
    low = saved_model.save(tmp_path / "low.ckpt", decoder_config(LOW_RANK))
    with pytest.raises(UserError, match=r"query: it has rank 6, the model's rank 7: further columns would be zero"):
        started(low, decoder_config(made(SPECTRAL, 7)))
    merged, _ = begun(low, decoder_config(DENSE))
    state = {f"decoder.{name}": weight for name, weight in merged.state_dict().items()}
    dense = saved_model.save(tmp_path / "dense.ckpt", decoder_config(DENSE), state_dict=state)
    _, beginning = begun(dense, decoder_config(made(LOW_RANK, 7)))
    assert "14 of them have a weight of lower rank than they are written with, blocks.0.attention.query by 1" in (
        beginning.report
    )


def test_how_weights_would_begin_and_which_projections_differ_is_no_other_architecture(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE))
    changes = {"embedding_std": 0.02, "initial_scale": "gpt2", "overrides": {"*.mlp.up": made(LOW_RANK, 48)}}
    decoder, _ = begun(file, decoder_config(DENSE, **changes))
    torch.testing.assert_close(logits(decoder), logits(read_trained(file).decoder), rtol=1e-4, atol=2e-4)


class Squared(nn.Module):
    """A map without a weight that could be written in another way."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.inner = nn.Linear(in_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).square()


SQUARED = {"class_path": "test_warm_start.Squared"}


@pytest.mark.parametrize(
    ("start", "changes", "line"),
    [
        (DENSE, {"width": 56}, "model.decoder: width is 56, its 48; set what it has"),
        (DENSE, {"heads": 2}, "heads is 2, its 4; kv_heads is 2, its 4"),
        (DENSE, {"rope_base": 500.0, "norm_eps": 0.1}, "rope_base is 500.0, its 10000.0; norm_eps is 0.1, its 1e-05"),
        (DENSE, {"tie_embeddings": True}, "tie_embeddings is True, its False"),
        (DENSE, {"class_path": "test_warm_start.Taller"}, "its decoder is lrtrain.nn.Decoder, model.decoder is test_w"),
        (SQUARED, {}, "blocks.0.attention.query: Squared has no dense weight: give it a method materialize()"),
    ],
)
def test_another_architecture_is_refused_by_its_fields(start: Any, changes: Any, line: str, tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(start))
    config = decoder_config(LOW_RANK, **{key: value for key, value in changes.items() if key != "class_path"})
    config["class_path"] = changes.get("class_path", config["class_path"])
    with pytest.raises(UserError) as caught:
        started(file, config)
    assert line in str(caught.value)
    assert str(caught.value).startswith(f"--init_from {file}")


class Taller(Decoder):
    """A decoder of one's own, with a part more."""

    def __init__(self, *args: Any, slope: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("scale", torch.full((2,), slope), persistent=False)
        self.extra = nn.Linear(self.width, self.width)

    def forward(self, *args: Any) -> torch.Tensor:
        hidden = super().forward(*args)
        return hidden + self.scale.sum() * self.extra(hidden)

    def flops_per_token(self, tokens: int) -> int:
        return super().flops_per_token(tokens) + 2 * self.width**2


def test_a_decoder_of_ones_own_keeps_what_no_checkpoint_holds(tmp_path: Path) -> None:
    config = {**decoder_config(DENSE), "class_path": "test_warm_start.Taller"}
    file = saved_model.save(tmp_path / "a.ckpt", config)
    decoder, beginning = begun(file, {**decoder_config(made(LOW_RANK, 48)), "class_path": "test_warm_start.Taller"})
    assert beginning.made_on == "cpu"
    assert decoder.scale.tolist() == [1, 1]
    torch.testing.assert_close(logits(decoder), logits(read_trained(file).decoder), rtol=1e-4, atol=2e-4)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("norm.weight", "blocks.1.mlp.up.weight"):
        state = {f"decoder.{key}": weight for key, weight in build_decoder(decoder_config(DENSE)).state_dict().items()}
        state[f"decoder.{name}"].view(-1)[0] = torch.nan
        file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE), state_dict=state)
        with pytest.raises(UserError, match=f"{name.removesuffix('.weight')}.* holds NaN or infinite numbers"):
            begun(file, decoder_config(LOW_RANK))


# Arguments that give the same numbers another meaning


class Scaled(nn.Module):
    """A dense map times a number that no checkpoint holds."""

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * in_features**-0.5)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def materialize(self) -> torch.Tensor:
        return self.scale * self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.materialize())


def scaled(**arguments: float) -> dict[str, Any]:
    return {"class_path": "test_warm_start.Scaled", "init_args": arguments}


@pytest.mark.parametrize(
    ("start", "goal", "line"),
    [
        (
            decoder_config(DENSE, scaled(scale=2.0)),
            decoder_config(DENSE, scaled(scale=3.0)),
            "blocks.*.mlp.gate: test_warm_start.Scaled: scale is 3.0, its 2.0; blocks.*.mlp.up: ",
        ),
        (
            decoder_config(DENSE, overrides={"*.up": scaled(scale=2.0)}),
            decoder_config(DENSE, overrides={"blocks.*.mlp.up": scaled()}),
            "blocks.*.mlp.up: test_warm_start.Scaled: scale is 1.0, its 2.0",
        ),
        (
            {**decoder_config(DENSE), "class_path": "test_warm_start.Taller"},
            {**decoder_config(DENSE, slope=2.0), "class_path": "test_warm_start.Taller"},
            "model.decoder.slope is 2.0, its 1.0",
        ),
        (decoder_config(DENSE, scaled(scale=2.0)), decoder_config(DENSE, scaled(scale=2.0)), ""),
        (decoder_config(DENSE, scaled(scale=2.0)), decoder_config(DENSE, LOW_RANK), ""),
    ],
    ids=["projection", "override", "decoder", "the same", "rewritten"],
)
def test_an_argument_of_ones_own_class_that_differs_is_told(start: Any, goal: Any, line: str, tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", start)
    _, beginning = begun(file, goal)
    (first, *more) = [text for text in beginning.report.splitlines() if text.startswith("init_from")]
    assert first.startswith(f"init_from {file} (step 3): ")
    assert bool(more) == bool(line)
    for text in more:
        assert text.startswith(
            f"init_from {file}: weights are copied into what may compute something else with them: {line}"
        )


def test_what_no_checkpoint_holds_counts_where_a_weight_is_written_in_another_way(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE, scaled(scale=2.0)))
    decoder, beginning = begun(file, decoder_config(DENSE, made(LOW_RANK, 48)))
    assert ", 6 projections rewritten" in beginning.report
    torch.testing.assert_close(logits(decoder), logits(read_trained(file).decoder), rtol=1e-4, atol=2e-4)


# Several processes

GOAL = decoder_config(LOW_RANK, SPECTRAL)


def weights_at_start(folder: Path, file: Path, strategy: str) -> dict[str, torch.Tensor]:
    """The weights with which a process of a run begins."""
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # no process may draw what another has
    losses = Losses()
    model = CausalLM(
        partial(build_decoder, GOAL),
        Optimizers(spectral_runs.SPECTRON, spectral_runs.ADAMW, {"*.mlp.*": spectral_runs.ADAMW}),
        partial(WarmupCosine, warmup=0.3),
    )
    model.warm_start = started(file, GOAL)
    trainer = spectral_runs.trainer(
        folder,
        [losses],
        strategy=STRATEGIES[strategy](),
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        max_steps=1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        precision="32-true",
    )
    trainer.fit(model, Share(trainer, 4))
    return losses.restored["weights"]


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_every_process_begins_with_the_weights_that_one_alone_would(strategy: str, tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE))
    (alone,) = on_ranks(1, weights_at_start, tmp_path, file, "single")
    expected, _ = begun(file, GOAL)
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(alone[f"decoder.{name}"], weight.detach(), rtol=0, atol=1e-6, msg=name)
    for many in on_ranks(3, weights_at_start, tmp_path, file, strategy):
        for name, weight in alone.items():
            assert torch.equal(many[name], weight), name


def save_sharded(folder: Path, file: Path) -> None:
    """The checkpoint in a file as the folder that two processes write."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    content = read_whole(file)
    weights = content["state_dict"]
    content["state_dict"] = {name: distribute_tensor(w, mesh, [Shard(0)]) for name, w in weights.items()}
    write_sharded(content, folder)


def line_at_start(folder: Path, file: Path, strategy: str) -> str:
    try:
        weights_at_start(folder, file, strategy)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["norm.weight", "blocks.0.attention.query.A"])
def test_a_sharded_checkpoint_with_a_number_that_is_none_is_refused_by_every_process(name: str, tmp_path: Path) -> None:
    state = {f"decoder.{key}": weight for key, weight in build_decoder(GOAL).state_dict().items()}
    file = saved_model.save(tmp_path / "whole/a.ckpt", GOAL, state_dict=state)
    on_ranks(2, save_sharded, tmp_path / "good.ckpt", file)
    assert on_ranks(2, line_at_start, tmp_path, tmp_path / "good.ckpt", "fsdp") == ["", ""]
    state[f"decoder.{name}"][-1] = torch.inf  # a row of the last process alone
    file = saved_model.save(tmp_path / "whole/a.ckpt", GOAL, state_dict=state)
    on_ranks(2, save_sharded, tmp_path / "a.ckpt", file)
    line = f"--init_from {tmp_path}/a.ckpt (step 3): {name} holds NaN or infinite numbers; name another checkpoint"
    assert on_ranks(2, line_at_start, tmp_path, tmp_path / "a.ckpt", "fsdp") == [line, line]
    with pytest.raises(UserError) as caught:
        begun(tmp_path / "a.ckpt", GOAL)
    assert str(caught.value) == line
