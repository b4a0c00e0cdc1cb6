"""SCT's switches inside a real Trainer: what is attached, what holds at every moment, what is refused."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

import reference
from lrtrain.constraints import FunctionPreservingRetraction, StiefelRetraction
from lrtrain.nn import SpectralLinear
from lrtrain.optim import Optimizers, Stiefel
from lrtrain.runtime.errors import UserError
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from observers import Observer
from spectral_runs import ADAMW, STEPS, batches, language_model, trainer

STIEFEL = Optimizers(hidden=partial(Stiefel, lr=0.1), other=ADAMW, overrides={"*.s": ADAMW})
SWITCHES = {
    "project_gradients": {"project", "retract"},
    "transport_momentum": {"retract"},
    "preserve_function": {"preserve"},
    "bound_updates": {"bound", "retract"},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_keeps_the_bases_orthonormal_at_every_moment(switch: str, tmp_path: Path) -> None:
    own, observer = SpectralConstraints(**{switch: True}), Observer()  # type: ignore[arg-type]
    run = trainer(tmp_path, [own, observer])
    run.fit(language_model("spectral", STIEFEL), batches(), batches(1))
    assert own.constraints.keys() == SWITCHES[switch]
    assert observer.steps == STEPS
    assert max(max(errors) for errors in observer.errors.values()) <= 1e-5


def test_the_switches_reach_the_constraints(tmp_path: Path) -> None:
    own = SpectralConstraints(preserve_function=True, transport_momentum=True)
    trainer(tmp_path, [own]).fit(language_model("spectral", STIEFEL), batches())
    preserve = own.constraints["preserve"]
    assert isinstance(preserve, FunctionPreservingRetraction)
    assert preserve.transport
    assert len(preserve.triples) == 14  # seven projections in each of two blocks
    own = SpectralConstraints(transport_momentum=True)
    trainer(tmp_path, [own]).fit(language_model("mixed"), batches())
    retract = own.constraints["retract"]
    assert isinstance(retract, StiefelRetraction)
    assert retract.transport


def test_the_best_combination_moves_no_weight_by_more_than_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model("spectral", STIEFEL)
    before: dict[str, torch.Tensor] = {}
    ratios: list[float] = []
    changes: list[float] = []

    def weights() -> dict[str, torch.Tensor]:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SpectralLinear)}
        return {name: layer.materialize().detach().clone() for name, layer in layers.items()}

    real_before, real_after = SpectralConstraints.on_before_optimizer_step, FunctionPreservingRetraction.after_step

    def before_step(self: SpectralConstraints, *arguments: object) -> None:
        before.update(weights())
        real_before(self, *arguments)  # type: ignore[arg-type]

    def after_step(self: FunctionPreservingRetraction) -> None:
        updated = weights()
        real_after(self)
        of_s, rate = (group["lr"] for group in model.trainer.optimizers[0].param_groups[:2])
        for name, weight in weights().items():
            changes.append(float((weight - updated[name]).abs().max()))
            ratios.append(reference.norm(weight - before[name]) / (rate + of_s))

    monkeypatch.setattr(SpectralConstraints, "on_before_optimizer_step", before_step)
    monkeypatch.setattr(FunctionPreservingRetraction, "after_step", after_step)
    trainer(tmp_path, [SpectralConstraints(preserve_function=True, bound_updates=True)]).fit(model, batches())
    assert len(ratios) == 14 * STEPS
    assert 0.3 < max(ratios) <= 1.3
    assert max(changes) <= 1e-5


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_without_a_spectral_projection_is_refused_in_a_line(switch: str, tmp_path: Path) -> None:
    own = SpectralConstraints(**{switch: True})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"{switch}: true, but the model has no spectral projection") as error:
        trainer(tmp_path, [own]).fit(language_model("low-rank"), batches())
    assert "\n" not in str(error.value)


def test_a_bound_asked_of_adamw_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bound_updates: true.*lrtrain\.optim\.Stiefel") as error:
        trainer(tmp_path, [SpectralConstraints(bound_updates=True)]).fit(language_model("spectral"), batches())
    assert "\n" not in str(error.value)


def test_a_switch_of_the_retraction_without_retraction_is_refused() -> None:
    for switch in ("preserve_function", "transport_momentum"):
        with pytest.raises(UserError, match="retract: false"):
            SpectralConstraints(retract=False, **{switch: True})  # type: ignore[arg-type]


def test_weight_decay_on_s_alone_shrinks_s_and_nothing_else(tmp_path: Path) -> None:
    ends = []
    for decay in (0.0, 0.5):
        decayed = partial(AdamW, lr=0.05, weight_decay=decay)
        optimizers = Optimizers(hidden=partial(Stiefel, lr=1e-6), other=ADAMW, overrides={"*.s": decayed})
        model = language_model("spectral", optimizers)
        trainer(tmp_path, [], precision="32-true").fit(model, batches())
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    for name, plain in ends[0].items():
        if name.endswith(".s"):
            assert float((ends[1][name] / plain).max()) < 0.97
        elif name[-2:] in (".U", ".V"):
            torch.testing.assert_close(ends[1][name], plain, rtol=0, atol=1e-4)
