"""Self-guided training inside a real run: logged, saved, resumed, generated from, on one process and on two."""

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import AdamW

import toy
from checkpoint_state import differences
from commandline import RECIPE, arguments, refusal
from lrtrain.cli.main import main
from lrtrain.nn import Decoder, LowRankLinear, SelfGuidedLinear
from lrtrain.nn.self_guided import guidance, guide, release, self_guided
from lrtrain.optim import Optimizers, Spectron, WarmupCosine, remove_parameters
from lrtrain.runtime.errors import UserError
from lrtrain.training.callbacks.self_guidance import SelfGuidance
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.fsdp import FSDP
from observers import ObservingLogger
from ranks import on_ranks
from sharded_runs import Share
from spectral_runs import STEPS, VOCAB, batches, every_step, trainer

GUIDED_STEPS = STEPS // 2
ADAM = partial(AdamW, lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
OVERLAY = ["--config", str(RECIPE.parent / "methods/selfguided.yaml")]


def guided_model(optimizers: Optimizers | None = None, projection: Any = SelfGuidedLinear, **options: Any) -> CausalLM:
    linear = partial(projection, rank_ratio=0.25)
    decoder = partial(Decoder, VOCAB, 32, 2, 2, 48, attention=linear, mlp=linear)
    torch.manual_seed(5)
    return CausalLM(decoder, optimizers or Optimizers(ADAM, ADAM), partial(WarmupCosine, warmup=0.3), **options)


class DenseWeights(L.Callback):
    """Keeps no dense weight alive, and knows which are, after each step and while validating."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[Tensor]] = []
        self.alive: dict[int, int] = {}
        self.alphas: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for layer in self_guided(pl_module).values():
            if layer.W is not None:
                self.references.append(weakref.ref(layer.W))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.alive[trainer.global_step] = sum(reference() is not None for reference in self.references)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            alphas = {0.0 if one.alpha is None else float(one.alpha) for one in self_guided(pl_module).values()}
            assert sorted(alphas) == pytest.approx([guidance(trainer.global_step, GUIDED_STEPS)], abs=1e-7)
            self.alphas += alphas


def test_the_dense_weights_guide_half_the_run_and_are_gone_from_it(tmp_path: Path) -> None:
    """With accumulation, clipping, bfloat16 and Spectron on the factors, which stay a constrained pair."""
    optimizers = Optimizers(partial(Spectron, lr=0.1), ADAM, overrides={"*.W": ADAM})
    model, weights = guided_model(optimizers), DenseWeights()
    logger = ObservingLogger(model)
    run = trainer(tmp_path, [weights, every_step(tmp_path / "saved")], logger=logger)
    run.fit(model, batches(), batches(1))

    layers = len(self_guided(model))
    assert weights.alive == {step: layers if step < GUIDED_STEPS else 0 for step in range(STEPS)}
    assert len(weights.alphas) == 4
    points = {step: values["spectral/guidance"] for step, values in logger.points if "spectral/guidance" in values}
    assert points == pytest.approx({step + 1: guidance(step, GUIDED_STEPS) for step in range(STEPS)})
    (constraints,) = (c for c in run.callbacks if isinstance(c, SpectralConstraints))  # type: ignore[attr-defined]
    assert len(constraints.constraints["SpectralRenormalization"].held) == layers  # type: ignore[attr-defined]
    plain = guided_model(projection=LowRankLinear)
    plain.configure_model()
    for step in range(1, STEPS + 1):
        (file,) = (tmp_path / "saved").glob(f"*step={step}.ckpt")
        saved = torch.load(file, weights_only=True)
        held = [name for group in saved["optimizer_states"][0]["param_groups"] for name in group["param_names"]]
        assert set(held) == {name for name in saved["state_dict"] if not name.endswith(".alpha")}
        assert len(saved["optimizer_states"][0]["state"]) == len(held)
        dense = sum(name.endswith(".W") for name in saved["state_dict"])
        assert dense == (layers if step < GUIDED_STEPS else 0)
        if not dense:
            plain.load_state_dict(saved["state_dict"])
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


def test_a_run_is_the_plain_loop(tmp_path: Path) -> None:
    model = guided_model()
    run = trainer(tmp_path, [], precision="32-true", accumulate_grad_batches=1, gradient_clip_val=None)
    run.fit(model, batches())

    plain = guided_model()
    plain.configure_model()
    optimizer, _ = plain._build_optimizer(plain)
    schedule = WarmupCosine(optimizer, STEPS, warmup=0.3)
    for step, batch in zip(range(STEPS), batches(), strict=False):
        guide(plain, step, GUIDED_STEPS)
        if step == GUIDED_STEPS:
            remove_parameters(optimizer, release(plain))
        optimizer.zero_grad()
        plain.decoder.loss(batch[:, :-1], batch[:, 1:]).backward()
        optimizer.step()
        schedule.step()
    weights = dict(plain.named_parameters())
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_only_a_model_with_such_a_projection_gets_the_callback(tmp_path: Path) -> None:
    own = SelfGuidance(share=1.0)
    for model, callbacks, shares in (
        (guided_model(), [], [0.5]),
        (guided_model(), [own], [1.0]),
        (guided_model(projection=LowRankLinear), [], []),
    ):
        run = trainer(tmp_path, list(callbacks))
        run.fit(model, batches())
        assert [c.share for c in run.callbacks if isinstance(c, SelfGuidance)] == shares  # type: ignore[attr-defined]
        assert all(layer.W is None for layer in self_guided(model).values())


# The command line


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of six steps, every one of them saved."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["fit", *fit(shards, folder, "--checkpoints.every_n_steps=1", "--checkpoints.keep=-1")]) == 0
    return folder


def fit(shards: Path, folder: Path, *more: str, steps: int = STEPS) -> list[str]:
    return arguments(shards, folder, *OVERLAY, "--name=x", "--seed_everything=3", *more, steps=steps)


def saved(folder: Path, step: int) -> Path:
    return folder / f"x/0001/checkpoints/step-{step:08d}.ckpt"


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_that_goes_on_before_at_and_after_the_deletion_is_the_one_that_never_stopped(
    step: int, runs: Path, shards: Path, tmp_path: Path
) -> None:
    before = torch.load(saved(runs, step), weights_only=True)
    assert any(name.endswith(".W") for name in before["state_dict"]) == (step < GUIDED_STEPS)
    assert main(["fit", *fit(shards, tmp_path, f"--ckpt_path={saved(runs, step)}")]) == 0
    a, b = (torch.load(saved(folder, STEPS), weights_only=True) for folder in (runs, tmp_path))
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(a[part], b[part]) == []


def test_after_the_deletion_low_rank_projections_go_on_alike(runs: Path, shards: Path, tmp_path: Path) -> None:
    low_rank = [f"--model.decoder.{part}.class_path=lrtrain.nn.LowRankLinear" for part in ("attention", "mlp")]
    low_rank += [f"--model.decoder.{part}.init_args.rank_ratio=0.25" for part in ("attention", "mlp")]
    low_rank += ["--trainer.callbacks=null"]
    assert main(["fit", *fit(shards, tmp_path, *low_rank, f"--ckpt_path={saved(runs, 4)}")]) == 0
    a, b = (torch.load(saved(folder, STEPS), weights_only=True) for folder in (runs, tmp_path))
    for part in ("state_dict", "optimizer_states"):
        assert differences(a[part], b[part]) == []


def test_an_override_of_the_dense_weights_alone_outlives_them(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    override = tmp_path / "override.yaml"
    override.write_text(
        'model: {optimizers: {overrides: {"*.W": {class_path: torch.optim.Muon, init_args: {lr: 0.01}}}}}'
    )
    more = ["--config", str(override)]
    assert main(["fit", *fit(shards, folder, *more)]) == 0
    assert main(["fit", *fit(shards, folder, *more, "--ckpt_path=last", steps=8)]) == 0
    assert torch.load(saved(folder, 8), weights_only=True)["global_step"] == 8


@pytest.mark.parametrize("step", [1, STEPS])
def test_text_and_figures_come_from_a_checkpoint_with_and_without_dense_weights(
    step: int, runs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrtrain.config.trained_model import load

    decoder, _ = load(saved(runs, step))
    alphas = {float(layer.alpha) for layer in self_guided(decoder).values() if layer.alpha is not None}
    assert alphas == ({0.75} if step == 1 else set())
    capsys.readouterr()
    assert main(["generate", str(saved(runs, step)), "--prompt", "rank", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("rank")
    assert main(["validate", *fit(shards, tmp_path, f"--ckpt_path={saved(runs, step)}")]) == 0
    assert "val/loss" in capsys.readouterr().out


# Several processes


def test_copies_on_two_processes_train_as_one_and_lose_the_dense_weights(tmp_path: Path) -> None:
    (alone,) = on_ranks(1, _train, tmp_path / "one")
    outcomes = on_ranks(2, _train, tmp_path / "two")
    for outcome in outcomes:
        assert outcome["alive"] == alone["alive"]
        assert outcome["weights"].keys() == alone["weights"].keys()
        for name, weight in alone["weights"].items():
            difference = torch.linalg.vector_norm(outcome["weights"][name] - weight)
            assert difference <= 1e-4 * torch.linalg.vector_norm(weight), name  # AdamW divides roundings by roundings
    assert list(alone["alive"].values()) == [14] * GUIDED_STEPS + [0] * (STEPS - GUIDED_STEPS)
    for refusals in (outcome["refusals"] for outcome in outcomes):
        assert all("use trainer.strategy: ddp_find_unused_parameters_true" in line for line in refusals)
        assert [line.partition(":")[0] for line in refusals] == ["trainer.strategy", "trainer.strategy is FSDP"]


def _train(root: Path) -> dict[str, Any]:
    import os

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    same: dict[str, Any] = {"accumulate_grad_batches": 1, "precision": "32-true", "limit_val_batches": 0}
    same |= {"devices": processes, "use_distributed_sampler": False, "max_steps": STEPS}

    def fit(strategy: Any, callbacks: list[L.Callback]) -> CausalLM:
        model = guided_model()
        run = trainer(root, callbacks, strategy=strategy, **same)
        run.fit(model, Share(run, STEPS))
        return model

    weights = DenseWeights()
    model = fit(DDPStrategy(find_unused_parameters=True) if processes > 1 else "auto", [weights])
    refusals = []
    for strategy in (DDPStrategy(), FSDP()) if processes > 1 else ():
        with pytest.raises(UserError) as error:
            fit(strategy, [])
        refusals.append(str(error.value))
    state = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    return {"alive": weights.alive, "weights": state, "refusals": refusals}


# What is refused


def test_what_cannot_work_is_refused_in_a_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*more: str) -> str:
        return refusal(["fit", *fit(shards, tmp_path, *more)], capsys)

    assert line("--model.compile=true").startswith("model.compile is true: self-guided projections")
    assert line("--trainer.callbacks.init_args.share=0").startswith("trainer.callbacks: SelfGuidance has share: 0.0")
    plain = ["--model.decoder.attention=lrtrain.nn.DenseLinear", "--model.decoder.mlp=lrtrain.nn.DenseLinear"]
    assert "the model has no self-guided projection" in line(*plain)
    assert not list(tmp_path.glob("x/*")), "a refused run leaves nothing"
