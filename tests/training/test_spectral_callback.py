"""The constraints inside a real Trainer: accumulation, clipping, bf16-mixed, validation in mid-epoch."""

from pathlib import Path

import lightning as L
import pytest
import torch

from lrtrain.constraints import SpectralRenormalization, StiefelRetraction
from lrtrain.linalg import orthonormality_error
from lrtrain.optim import Optimizers
from lrtrain.runtime.errors import UserError
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from observers import Observer, ObservingLogger, error_of, products
from spectral_runs import ACCUMULATE, ADAMW, SPECTRON, STEPS, batches, every_kind, every_step, language_model, trainer

RENORMALIZE, RETRACT = "SpectralRenormalization", "StiefelRetraction"


@pytest.fixture
def retractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The deviation from orthonormality before each retraction of the run."""
    seen, real = [], StiefelRetraction.after_step

    def after_step(self: StiefelRetraction) -> None:
        seen.append(max(float(orthonormality_error(p)) for p in self.held.values()))
        real(self)

    monkeypatch.setattr(StiefelRetraction, "after_step", after_step)
    return seen


@every_kind
def test_at_every_moment_the_bases_are_orthonormal_and_the_updates_bounded(
    kind: str, tmp_path: Path, retractions: list[float]
) -> None:
    model, first, last = language_model(kind), Observer(), Observer()
    logger = ObservingLogger(model)
    run = trainer(tmp_path, [first, every_step(tmp_path / "checkpoints"), last], logger=logger)
    run.fit(model, batches(), batches(1))

    assert run.global_step == STEPS
    for observer in (first, last):
        assert observer.steps == STEPS
        assert {moment: len(errors) for moment, errors in observer.errors.items()} == {
            "before step": STEPS,
            "batch end": STEPS * ACCUMULATE,
            "validation": 1 + STEPS * ACCUMULATE // 3,
            "save": STEPS,
            "checkpoint": STEPS,
        }
        assert max(max(errors) for errors in observer.errors.values()) <= 1e-5
    assert len(logger.errors) >= STEPS
    assert max(logger.errors) <= 1e-5
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert len(files) == STEPS
    for file in files:
        assert error_of(torch.load(file, weights_only=True)["state_dict"]) <= 1e-5
    if kind != "low-rank":
        assert len(retractions) == STEPS  # once a step, none while accumulating
        assert min(retractions) > 1e-4  # and each was needed
    if kind != "spectral":
        assert len(first.ratios) == len(products(model)) * STEPS
        assert 0.1 < max(first.ratios) <= 1.3


def attached(run: L.Trainer) -> list[SpectralConstraints]:
    return [c for c in run.callbacks if isinstance(c, SpectralConstraints)]  # type: ignore[attr-defined]


@every_kind
def test_the_model_attaches_what_its_projections_need(kind: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, [])
    run.fit(language_model(kind), batches())
    (callback,) = attached(run)
    expected = {"low-rank": {RENORMALIZE}, "spectral": {RETRACT}, "mixed": {RENORMALIZE, RETRACT}}
    assert callback.constraints.keys() == expected[kind]


def test_the_configurations_own_callback_replaces_the_automatic_one(tmp_path: Path, retractions: list[float]) -> None:
    own = SpectralConstraints([])
    run, model = trainer(tmp_path, [own]), language_model("mixed")
    run.fit(model, batches())
    assert attached(run) == [own]
    assert not own.constraints
    assert not retractions
    assert error_of(dict(model.named_parameters())) > 1e-4


def test_without_renormalization_spectron_takes_longer_steps(tmp_path: Path) -> None:
    ratios = []
    for constraints in (None, []):
        observer = Observer()
        run = trainer(tmp_path, [SpectralConstraints(constraints), observer])
        run.fit(language_model("low-rank"), batches())
        ratios.append(max(observer.ratios))
    assert ratios[0] <= 1.3 < ratios[1]


def test_adamw_on_the_factors_gets_no_renormalization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SpectralRenormalization, "before_step")
    run = trainer(tmp_path, [])
    run.fit(language_model("low-rank", Optimizers(ADAMW, ADAMW)), batches())
    assert not attached(run)[0].constraints
    assert run.global_step == STEPS


def test_renormalization_asked_of_adamw_is_refused_in_a_line(tmp_path: Path) -> None:
    model = language_model("low-rank", Optimizers(ADAMW, ADAMW))
    with pytest.raises(UserError, match=r"SpectralRenormalization: .*lrtrain\.optim\.Spectron") as error:
        trainer(tmp_path, [SpectralConstraints([SpectralRenormalization()])]).fit(model, batches())
    assert "\n" not in str(error.value)


def test_a_pair_with_another_optimizer_leaves_the_others_renormalized(tmp_path: Path) -> None:
    run = trainer(tmp_path, [])
    model = language_model("low-rank", Optimizers(SPECTRON, ADAMW, overrides={"*.mlp.*": ADAMW}))
    run.fit(model, batches())
    constraint = attached(run)[0].constraints[RENORMALIZE]
    assert isinstance(constraint, SpectralRenormalization)
    assert constraint.held.keys() == {name for name in products(model) if ".attention." in name}


def test_a_pair_of_two_kinds_of_optimizers_is_refused(tmp_path: Path) -> None:
    optimizers = Optimizers(SPECTRON, ADAMW, overrides={"*.query.A": ADAMW})
    with pytest.raises(UserError, match=r"A and B of decoder\.blocks\.0\.attention\.query"):
        trainer(tmp_path, []).fit(language_model("low-rank", optimizers), batches())
