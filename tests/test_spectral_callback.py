"""The constraints inside a real Trainer: accumulation, clipping, bf16-mixed, validation in mid-epoch, checkpoints."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

import reference
from lrtrain.callbacks.spectral import SpectralConstraints
from lrtrain.constraints import SpectralRenormalization, StiefelRetraction
from lrtrain.errors import UserError
from lrtrain.linalg import orthonormality_error
from lrtrain.module import CausalLM
from lrtrain.nn import Decoder, LowRankLinear, SpectralLinear
from lrtrain.optim import Optimizers, Spectron, WarmupCosine

VOCAB, STEPS, ACCUMULATE = 50, 6, 2
LOW_RANK, SPECTRAL = partial(LowRankLinear, rank_ratio=0.25), partial(SpectralLinear, rank_ratio=0.25)
SPECTRON, ADAMW = partial(Spectron, lr=0.1), partial(AdamW, lr=0.01)
KINDS = {
    "low-rank": (LOW_RANK, LOW_RANK, Optimizers(hidden=SPECTRON, other=ADAMW)),
    "spectral": (SPECTRAL, SPECTRAL, Optimizers(hidden=ADAMW, other=ADAMW)),
    "mixed": (LOW_RANK, SPECTRAL, Optimizers(hidden=SPECTRON, other=ADAMW, overrides={"*.mlp.*": ADAMW})),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def language_model(kind: str, optimizers: Optimizers | None = None) -> CausalLM:
    attention, mlp, usual = KINDS[kind]
    decoder = partial(Decoder, VOCAB, 32, 2, 2, 48, attention=attention, mlp=mlp)
    torch.manual_seed(5)
    return CausalLM(decoder, optimizers or usual, partial(WarmupCosine, warmup=0.3))


def batches(count: int = STEPS * ACCUMULATE) -> DataLoader:
    data = torch.randint(0, VOCAB, (4 * count, 9), generator=torch.Generator().manual_seed(1))
    return DataLoader(data, batch_size=4)  # type: ignore[arg-type]


def trainer(folder: Path, callbacks: list[L.Callback], **changes: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "precision": "bf16-mixed",
        "max_steps": STEPS,
        "accumulate_grad_batches": ACCUMULATE,
        "gradient_clip_val": 1.0,
        "val_check_interval": 3,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(default_root_dir=folder, callbacks=callbacks, **{**settings, **changes})


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


def error_of(tensors: Mapping[str, Tensor]) -> float:
    bases = [t for name, t in tensors.items() if name.rpartition(".")[2] in ("U", "V")]
    return max((float(orthonormality_error(t)) for t in bases), default=0.0)


def products(model: CausalLM) -> dict[str, Tensor]:
    found = {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}
    return {name: m.materialize().detach().clone() for name, m in found.items()}


class Observer(L.Callback):
    """Looks at the weights at every moment when anyone can see them."""

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = {}
        self.ratios: list[float] = []
        self.steps = 0

    def look(self, moment: str, model: L.LightningModule) -> None:
        self.errors.setdefault(moment, []).append(error_of(dict(model.named_parameters())))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self.look("before step", pl_module)
        self.rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        self.before = products(pl_module)
        self.stepped = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.stepped = False
        self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.look("batch end", pl_module)
        same = [torch.equal(p, self.weights[name]) for name, p in pl_module.named_parameters()]
        assert not any(same) if self.stepped else all(same)
        if self.stepped:
            self.steps += 1
            for name, product in products(pl_module).items():
                eta = self.rates[id(pl_module.get_submodule(name).A)]
                assert eta > 0
                self.ratios.append(reference.norm(product - self.before[name]) / eta)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.look("validation", pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.look("save", pl_module)
        self.errors.setdefault("checkpoint", []).append(error_of(checkpoint["state_dict"]))


class ObservingLogger(Logger):
    """Looks at the weights whenever a point is logged, and keeps the points."""

    name, version = "observing", 0

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model, self.errors, self.points = model, [], []  # type: ignore[var-annotated]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.errors.append(error_of(dict(self.model.named_parameters())))
        self.points.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing of a run's parameters is looked at."""


@pytest.fixture
def retractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The deviation from orthonormality before each retraction of the run."""
    seen, real = [], StiefelRetraction.after_step

    def after_step(self: StiefelRetraction) -> None:
        seen.append(max(float(orthonormality_error(p)) for p in self.parameters.values()))
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


@every_kind
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole = language_model(kind)
    data = DataLoader(torch.arange(9).expand(4 * STEPS * ACCUMULATE, 9) * 5, batch_size=4)  # type: ignore[arg-type]
    trainer(tmp_path, [every_step(tmp_path)]).fit(whole, data)
    resumed = language_model(kind)
    trainer(tmp_path, [every_step(tmp_path / "again")]).fit(resumed, data, ckpt_path=tmp_path / "step=3.ckpt")
    final = dict(resumed.named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, final[name]), name


def test_the_power_iterations_vectors_are_in_the_checkpoint(tmp_path: Path) -> None:
    model = language_model("low-rank")
    trainer(tmp_path, [every_step(tmp_path)]).fit(model, batches())
    states = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for name, state in states.items() if "SpectralConstraints" in name)
    names = {f"{name}.{side}" for name in products(model) for side in "AB"}
    assert state["renormalize"]["vectors"].keys() == names
    assert all(float(v.norm()) == pytest.approx(1) for v in state["renormalize"]["vectors"].values())


def attached(run: L.Trainer) -> list[SpectralConstraints]:
    return [c for c in run.callbacks if isinstance(c, SpectralConstraints)]  # type: ignore[attr-defined]


@every_kind
def test_the_model_attaches_what_its_projections_need(kind: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, [])
    run.fit(language_model(kind), batches())
    (callback,) = attached(run)
    expected = {"low-rank": {"renormalize"}, "spectral": {"retract"}, "mixed": {"renormalize", "retract"}}
    assert callback.constraints.keys() == expected[kind]


def test_the_configurations_own_callback_replaces_the_automatic_one(tmp_path: Path, retractions: list[float]) -> None:
    own = SpectralConstraints(renormalize=False, retract=False)
    run, model = trainer(tmp_path, [own]), language_model("mixed")
    run.fit(model, batches())
    assert attached(run) == [own]
    assert not own.constraints
    assert not retractions
    assert error_of(dict(model.named_parameters())) > 1e-4


def test_without_renormalisation_spectron_takes_longer_steps(tmp_path: Path) -> None:
    ratios = []
    for renormalize in (None, False):
        observer = Observer()
        run = trainer(tmp_path, [SpectralConstraints(renormalize=renormalize), observer])
        run.fit(language_model("low-rank"), batches())
        ratios.append(max(observer.ratios))
    assert ratios[0] <= 1.3 < ratios[1]


def test_adamw_on_the_factors_gets_no_renormalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SpectralRenormalization, "before_step")
    run = trainer(tmp_path, [])
    run.fit(language_model("low-rank", Optimizers(ADAMW, ADAMW)), batches())
    assert not attached(run)[0].constraints
    assert run.global_step == STEPS


def test_renormalisation_asked_of_adamw_is_refused_in_a_line(tmp_path: Path) -> None:
    model = language_model("low-rank", Optimizers(ADAMW, ADAMW))
    with pytest.raises(UserError, match=r"renormalize: true.*lrtrain\.optim\.Spectron") as error:
        trainer(tmp_path, [SpectralConstraints(renormalize=True)]).fit(model, batches())
    assert "\n" not in str(error.value)


def test_the_logged_norms_are_the_exact_ones(tmp_path: Path) -> None:
    model, observer = language_model("mixed"), Observer()  # eight pairs: all are measured
    logger = ObservingLogger(model)
    callback = SpectralConstraints(measure_every_n_steps=1)
    trainer(tmp_path, [callback, observer], logger=logger, limit_val_batches=0).fit(model, batches())
    points = [metrics for _, metrics in logger.points if "spectral/update_over_lr" in metrics]
    assert len(points) == STEPS
    pairs = len(products(model))
    for index, point in enumerate(points):
        largest = max(observer.ratios[index * pairs : (index + 1) * pairs])
        assert point["spectral/update_over_lr"] == pytest.approx(largest, rel=1e-3)
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert points[-1]["spectral/sigma_A"] == pytest.approx(max(reference.norm(m.A) for m in layers), rel=1e-5)
    assert points[-1]["spectral/sigma_B"] == pytest.approx(max(reference.norm(m.B) for m in layers), rel=1e-5)


def test_a_pair_with_another_optimizer_leaves_the_others_renormalised(tmp_path: Path) -> None:
    run = trainer(tmp_path, [])
    model = language_model("low-rank", Optimizers(SPECTRON, ADAMW, overrides={"*.mlp.*": ADAMW}))
    run.fit(model, batches())
    constraint = attached(run)[0].constraints["renormalize"]
    assert isinstance(constraint, SpectralRenormalization)
    assert constraint.pairs.keys() == {name for name in products(model) if ".attention." in name}


def test_a_pair_of_two_kinds_of_optimizers_is_refused(tmp_path: Path) -> None:
    optimizers = Optimizers(SPECTRON, ADAMW, overrides={"*.query.A": ADAMW})
    with pytest.raises(UserError, match=r"A and B of decoder\.blocks\.0\.attention\.query"):
        trainer(tmp_path, []).fit(language_model("low-rank", optimizers), batches())


def test_what_is_logged_was_measured_in_the_very_step(tmp_path: Path) -> None:
    class GradientNorms(L.Callback):
        seen: tuple[float, ...] = ()

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()])
            self.seen = (*self.seen, float(norm))

    model, observer, gradients = language_model("mixed"), Observer(), GradientNorms()
    logger = ObservingLogger(model)
    callbacks = [SpectralConstraints(measure_every_n_steps=3), observer, gradients]
    run = trainer(tmp_path, callbacks, logger=logger, log_every_n_steps=3, limit_val_batches=0)
    run.fit(model, batches())
    pairs = len(products(model))
    points: dict[int, dict[str, float]] = {}
    for step, metrics in logger.points:
        points.setdefault(step, {}).update(metrics)
    assert [step for step, metrics in points.items() if "spectral/update_over_lr" in metrics] == [2, 5]
    for step in (2, 5):
        metrics = points[step]
        assert metrics["train/gradient_norm"] == pytest.approx(gradients.seen[step], rel=1e-5)
        largest = max(observer.ratios[step * pairs : (step + 1) * pairs])
        assert metrics["spectral/update_over_lr"] == pytest.approx(largest, rel=1e-3)
