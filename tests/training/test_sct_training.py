"""SCT's constraints inside a real Trainer: what is attached, what holds at every moment, what is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

import reference
from lrtrain.constraints import (
    BalancedRenormalization,
    Constraint,
    FunctionPreservingRetraction,
    StiefelRetraction,
    TangentProjection,
)
from lrtrain.nn import SpectralLinear
from lrtrain.optim import Optimizers, Stiefel
from lrtrain.runtime.errors import UserError
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from observers import Observer
from spectral_runs import ADAMW, STEPS, batches, language_model, trainer

STIEFEL = Optimizers(hidden=partial(Stiefel, lr=0.1), other=ADAMW, overrides={"*.s": ADAMW})
LISTS: dict[str, list[Callable[[], Constraint]]] = {
    "project": [TangentProjection, StiefelRetraction],
    "transport": [partial(StiefelRetraction, transport=True)],
    "preserve": [FunctionPreservingRetraction],
    "preserve and transport": [partial(FunctionPreservingRetraction, transport=True)],
    "bound": [BalancedRenormalization, StiefelRetraction],
}
every_list = pytest.mark.parametrize("constraints", LISTS.values(), ids=LISTS)


@every_list
def test_each_list_keeps_the_bases_orthonormal_at_every_moment(
    constraints: list[Callable[[], Constraint]], tmp_path: Path
) -> None:
    asked = [make() for make in constraints]
    own, observer = SpectralConstraints(asked), Observer()
    run = trainer(tmp_path, [own, observer])
    run.fit(language_model("spectral", STIEFEL), batches(), batches(1))
    assert list(own.constraints.values()) == asked
    assert list(own.constraints) == [type(one).__name__ for one in asked]
    assert observer.steps == STEPS
    assert max(max(errors) for errors in observer.errors.values()) <= 1e-5


def test_a_constraint_holds_what_there_is_for_it(tmp_path: Path) -> None:
    preserve, retract = FunctionPreservingRetraction(), StiefelRetraction(transport=True)
    trainer(tmp_path, [SpectralConstraints([preserve])]).fit(language_model("spectral", STIEFEL), batches())
    assert len(preserve.held) == 14  # seven projections in each of two blocks
    trainer(tmp_path, [SpectralConstraints([retract])]).fit(language_model("mixed"), batches())
    assert len(retract.held) == 12  # U and V of three projections in each of two blocks


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
    own = SpectralConstraints([BalancedRenormalization(), FunctionPreservingRetraction()])
    trainer(tmp_path, [own]).fit(model, batches())
    assert len(ratios) == 14 * STEPS
    assert 0.3 < max(ratios) <= 1.3
    assert max(changes) <= 1e-5


@every_list
def test_a_constraint_without_a_spectral_projection_is_refused_in_a_line(
    constraints: list[Callable[[], Constraint]], tmp_path: Path
) -> None:
    own = SpectralConstraints([make() for make in constraints])
    with pytest.raises(UserError, match=r"^trainer\.callbacks: .* the model has no spectral projection; use") as error:
        trainer(tmp_path, [own]).fit(language_model("low-rank"), batches())
    assert "\n" not in str(error.value)


def test_a_bound_asked_of_adamw_is_refused_in_a_line(tmp_path: Path) -> None:
    own = SpectralConstraints([BalancedRenormalization()])
    with pytest.raises(UserError, match=r"BalancedRenormalization: .*lrtrain\.optim\.Stiefel") as error:
        trainer(tmp_path, [own]).fit(language_model("spectral"), batches())
    assert "\n" not in str(error.value)


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
