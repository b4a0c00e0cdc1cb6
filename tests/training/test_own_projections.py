"""Parts of a researcher's own, by class path: projections, losses, decoders and figures of a layer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

import own_modules
import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.config.trained_model import load
from lrtrain.nn import Decoder, LowRankLinear
from lrtrain.optim import Optimizers, Spectron, WarmupCosine
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.fsdp import FSDP
from lrtrain.training.telemetry import Telemetry
from observers import ObservingLogger
from ranks import on_ranks
from sharded_runs import Losses, Share
from spectral_runs import STEPS, VOCAB, batches, trainer

COLA = [f"--model.decoder.{part}=own_modules.CoLA" for part in ("attention", "mlp")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


# Projections


def test_a_nonlinear_projection_trains_in_the_hidden_slot_and_goes_on_bit_for_bit(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ["--checkpoints.every_n_steps=1", "--checkpoints.keep=-1", "--name=x"]
    with pytest.warns(UserWarning, match="CoLA states no weight"):
        assert main(["fit", *arguments(shards, tmp_path / "a", *COLA, *every, steps=4)]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("hidden")]
    assert row[1] == "28"  # A and B of seven projections in two blocks
    assert row[3] == "Spectron"
    saved = tmp_path / "a/x/0001/checkpoints"
    resume = f"--ckpt_path={saved / 'step-00000002.ckpt'}"
    assert main(["fit", *arguments(shards, tmp_path / "b", *COLA, *every, resume, steps=4)]) == 0
    one, two = (torch.load(tmp_path / run / "x/0001/checkpoints/step-00000004.ckpt") for run in "ab")
    assert all(torch.equal(tensor, two["state_dict"][name]) for name, tensor in one["state_dict"].items())
    decoder, _ = load(saved / "step-00000004.ckpt")
    assert isinstance(decoder.blocks[0].mlp.up, own_modules.CoLA)  # type: ignore[union-attr]


def test_projections_without_parameters_leave_the_hidden_slot_empty_which_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = [f"--model.decoder.{part}=own_modules.Empty" for part in ("attention", "mlp")]
    for command in (["fit", *arguments(shards, tmp_path, *empty)], ["plan", *arguments(shards, tmp_path, *empty)]):
        assert refusal(command, capsys).startswith("model.optimizers.hidden has nothing to train")


# The loss


def language_model(loss: Any = None) -> CausalLM:
    linear = partial(LowRankLinear, rank_ratio=0.25)
    decoder = partial(Decoder, VOCAB, 32, 2, 2, 48, attention=linear, mlp=linear)
    torch.manual_seed(5)
    optimizers = Optimizers(partial(Spectron, lr=0.1), partial(SGD, lr=0.1))
    return CausalLM(decoder, optimizers, partial(WarmupCosine, warmup=0.3), loss)


def fit(root: Path, loss: Any, strategy: str = "auto", processes: int = 1) -> tuple[CausalLM, list[float], float]:
    """The trained model, its training losses and its last validation loss."""
    model, losses = language_model(loss), Losses()
    settings = {"accumulate_grad_batches": 1, "precision": "32-true", "limit_val_batches": 0}
    sharded: Any = FSDP() if strategy == "fsdp" else strategy
    run = trainer(root, [losses], strategy=sharded, devices=processes, use_distributed_sampler=False, **settings)
    run.fit(model, Share(run, STEPS))
    if processes > 1:
        return model, losses.losses, 0.0
    (figures,) = trainer(root, [], limit_val_batches=2, precision="32-true").validate(model, batches(2), verbose=False)
    return model, losses.losses, figures["val/loss"]


def test_training_minimizes_the_loss_of_ones_own_and_validation_the_next_token_loss(tmp_path: Path) -> None:
    plain, usual, _ = fit(tmp_path, None)
    for weight in (0.0, 0.1):
        model, losses, held = fit(tmp_path, own_modules.ZLoss(weight))
        assert losses[0] == pytest.approx(usual[0] + weight * _z(language_model()), rel=1e-5)
        (batch,) = [torch.cat(list(batches(2)))]
        expected = model.decoder.loss(batch[:, :-1], batch[:, 1:])
        assert held == pytest.approx(float(expected.detach()), rel=1e-5)
        same = [torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)]
        assert all(same) == (weight == 0)


def _z(model: CausalLM) -> float:
    """The mean squared log of the softmax's denominator on the first batch."""
    model.configure_model()
    tokens = torch.randint(0, VOCAB, (STEPS, 4, 9), generator=torch.Generator().manual_seed(1))[0]
    with torch.no_grad():
        return float(model(tokens[:, :-1]).logsumexp(-1).square().mean())


def test_a_loss_that_holds_weights_trains_and_saves_none_of_them(tmp_path: Path) -> None:
    teacher = own_modules.Teacher(VOCAB)
    before = teacher.table.weight.clone()
    model, losses, _ = fit(tmp_path, teacher)
    assert losses[-1] < losses[0]
    assert torch.equal(teacher.table.weight, before)
    assert not [name for name in model.state_dict() if "table" in name]


def test_sharded_over_two_processes_the_loss_of_ones_own_is_that_of_one(tmp_path: Path) -> None:
    (alone,) = on_ranks(1, _losses, tmp_path / "one", "auto")
    for found in on_ranks(2, _losses, tmp_path / "two", "fsdp"):
        assert found == pytest.approx(alone, rel=1e-5)


def _losses(root: Path, strategy: str) -> list[float]:
    import os

    return fit(root, own_modules.ZLoss(0.1), strategy, int(os.environ.get("WORLD_SIZE", "1")))[1]


def test_a_loss_by_class_path_with_its_arguments(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(shards, tmp_path, "--model.loss=own_modules.ZLoss", "--model.loss.weight=3")]) == 0
    file = next(tmp_path.rglob("config.yaml"))
    assert "class_path: own_modules.ZLoss\n    init_args:\n      weight: 3.0" in file.read_text()

    def line(*more: str) -> str:
        return refusal(["fit", *arguments(shards, tmp_path, *more)], capsys)

    teacher = ["--model.loss=own_modules.Teacher", f"--model.loss.vocab_size={toy.VOCABULARY}"]
    assert line(*teacher, "--model.loss.trainable=true").startswith("model.loss: the parameters of Teacher are neither")
    assert line("--model.loss=lrtrain.nn.next_token_loss") == (
        "model.loss: called as (hidden, head, targets, tokens): too many positional arguments"
    )
    assert line("--model.loss=own_modules.Nothing").startswith("--model.loss: the module own_modules has no Nothing;")


# The decoder


@pytest.mark.parametrize("named", ["flag", "overlay"])
def test_a_decoder_of_ones_own_keeps_the_recipes_arguments(named: str, shards: Path, tmp_path: Path) -> None:
    more = ["--model.decoder=own_modules.Scaled", "--model.decoder.hidden_scale=0.5"]
    if named == "overlay":
        overlay = tmp_path / "mine.yaml"
        overlay.write_text("model: {decoder: {class_path: own_modules.Scaled, init_args: {hidden_scale: 0.5}}}\n")
        more = ["--config", str(overlay)]
    assert main(["fit", *arguments(shards, tmp_path, *more)]) == 0
    decoder, _ = load(next(tmp_path.rglob("*.ckpt")))
    assert isinstance(decoder, own_modules.Scaled)
    assert (decoder.hidden_scale, decoder.width, len(decoder.blocks)) == (0.5, 64, 2)
    assert decoder.blocks[0].mlp.down.rank == 24  # type: ignore[union-attr]  # a quarter of 96, by the recipe's ${…}


def test_a_decoder_that_computes_more_than_it_states_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(["fit", *arguments(shards, tmp_path, "--model.decoder=own_modules.Uncounted")], capsys)
    assert line.startswith("model.decoder: Uncounted computes ")
    assert line.endswith("override it")


# Figures of a layer


def test_figures_of_ones_own_are_measured_after_the_step_and_logged(tmp_path: Path) -> None:
    from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry

    model = language_model()
    logger = ObservingLogger(model)
    own = SpectralTelemetry(["*.1.mlp.up"], every_n_steps=STEPS, figures=[own_modules.square])
    trainer(tmp_path, [own], logger=logger).fit(model, batches())
    layer = model.get_submodule("decoder.blocks.1.mlp.up")
    (found,) = [
        p["spectral/decoder.blocks.1.mlp.up/square"] for _, p in logger.points if own.measured.items() <= p.items()
    ]
    assert found == pytest.approx(sum(float(p.detach().square().sum()) for p in layer.parameters()))


def test_a_layer_without_a_weight_has_the_figures_of_ones_own_alone() -> None:
    model = Decoder(50, 32, 1, 2, 48, own_modules.CoLA, partial(LowRankLinear, rank=4))
    telemetry = Telemetry(model, ["*.output", "*.down"], [own_modules.square])
    assert telemetry.without_weight == ["blocks.0.attention.output"]
    telemetry.before_step(SGD(model.parameters(), lr=0.1))
    figures = telemetry.after_step()
    assert figures["blocks.0.attention.output"].keys() == {"square"}
    assert {"square", "weight_norm"} <= figures["blocks.0.mlp.down"].keys()


def test_a_figure_with_the_name_of_another_is_refused() -> None:
    model = Decoder(50, 32, 1, 2, 48, partial(LowRankLinear, rank=4), own_modules.CoLA)
    for figures in ([own_modules.clashing], [own_modules.square, own_modules.square]):
        telemetry = Telemetry(model, ["*.output"], figures)
        telemetry.before_step(SGD(model.parameters(), lr=0.1))
        with pytest.raises(ValueError, match="has the name of another"):
            telemetry.after_step()


def test_figures_by_path(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(
        "trainer: {callbacks: [{class_path: lrtrain.training.SpectralTelemetry, "
        "init_args: {every_n_steps: 1, figures: [own_modules.clashing]}}]}\n"
    )
    line = refusal(["fit", *arguments(shards, tmp_path, "--config", str(overlay))], capsys)
    assert line.startswith("trainer.callbacks: SpectralTelemetry.figures: the figure 'weight_norm' of")
