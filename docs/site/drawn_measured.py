"""Figures that show what lrtrain's own functions compute."""

from collections.abc import Callable

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from lrtrain.constraints import PartnerMetric, SpectralRenormalization
from lrtrain.linalg import orthonormalize
from lrtrain.linalg.newton_schulz import polynomials
from lrtrain.nn import LowRankLinear
from lrtrain.optim import LoRAMuon, Spectron, WarmupCosine, WarmupStableDecay


def norm(matrix: Tensor) -> float:
    """‖·‖₂ of a matrix."""
    return float(torch.linalg.matrix_norm(matrix, 2))


def parameters_by_rank() -> Figure:
    """Numbers of A and B over those of W, by rank ratio, for the shapes of a decoder."""
    figure, axes = pyplot.subplots(figsize=(4.6, 3.0))
    ratio = np.linspace(0, 1, 101)
    for out, label in ((1, "attention: out = in"), (8 / 3, "gate, up: out = 8/3 in"), (3 / 8, "down: out = 3/8 in")):
        rank = np.minimum(ratio, min(out, 1))
        axes.plot(ratio, rank * (1 + out) / out, label=label)
    axes.axhline(1, color="#888888", linewidth=1, linestyle="--")
    axes.axvline(0.25, color="#888888", linewidth=1, linestyle=":")
    axes.set(xlabel="rank ratio r / in", ylabel="numbers in A and B / numbers in W", xlim=(0, 1), ylim=(0, 2.1))
    axes.legend()
    return figure


def _trained(make: Callable[[LowRankLinear], tuple[Optimizer, object]], steps: int = 80) -> list[float]:
    """‖ΔW‖₂ of each step of a pair that learns a fixed linear map from noisy batches."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    target = torch.randn(96, 128, generator=generator) / 128**0.5
    layer = LowRankLinear(128, 96, rank_ratio=0.25)
    optimizer, constraint = make(layer)
    sizes = []
    for _ in range(steps):
        x = torch.randn(64, 128, generator=generator)
        noise = 0.5 * torch.randn(64, 96, generator=generator)
        before = layer.materialize().detach().clone()
        optimizer.zero_grad()
        (layer(x) - x @ target.mT - noise).square().sum(1).mean().backward()
        if isinstance(constraint, SpectralRenormalization | PartnerMetric):
            constraint.before_step(optimizer)
        optimizer.step()
        sizes.append(norm(layer.materialize().detach() - before))
    return sizes


def _spectron(layer: LowRankLinear, lr: float) -> tuple[Optimizer, object]:
    return Spectron([layer.A, layer.B], lr=lr), SpectralRenormalization().hold({"layer": (layer.A, layer.B)})


def update_norms() -> Figure:
    """‖ΔW‖₂ / η step by step, of optimizers of two matrices, and of Spectron, which bounds their product's step."""
    lr = 0.02
    makers: dict[str, Callable[[LowRankLinear], tuple[Optimizer, object]]] = {
        "AdamW on A and B": lambda layer: (AdamW([layer.A, layer.B], lr=lr, weight_decay=0), None),
        "Muon on A and B": lambda layer: (Muon([layer.A, layer.B], lr=lr, weight_decay=0), None),
        "Spectron": lambda layer: _spectron(layer, lr),
    }
    figure, axes = pyplot.subplots(figsize=(4.6, 3.0))
    for label, make in makers.items():
        axes.semilogy([size / lr for size in _trained(make)], label=label)
    axes.axhline(1, color="#888888", linewidth=1, linestyle="--")
    axes.set(xlabel="step", ylabel="‖ΔW‖₂ / η")
    axes.legend(loc="upper right")
    return figure


def newton_schulz() -> Figure:
    """What one to five steps of the polynomial make of a singular value."""
    figure, axes = pyplot.subplots(figsize=(4.6, 3.0))
    value = np.logspace(-3.5, 0, 400)
    mapped = value.copy()
    for number, (a, b, c) in enumerate(polynomials("paper", 5), start=1):
        mapped = a * mapped + b * mapped**3 + c * mapped**5
        if number in (1, 2, 3, 5):
            axes.semilogx(value, mapped, label=f"{number} step" + "s" * (number > 1))
    axes.axhspan(0.7, 1.2, color="#888888", alpha=0.2, linewidth=0)
    axes.set(xlabel="singular value of M over the Frobenius norm", ylabel="singular value of O", ylim=(0, 1.75))
    axes.legend(loc="upper center", ncols=2)
    return figure


def balance() -> Figure:
    """‖ΔW‖₂ / η of one step where the product is the same and A has more, or less, of its scale."""
    shares = np.logspace(-1, 1, 21)
    figure, axes = pyplot.subplots(figsize=(4.6, 3.0))
    lr = 0.05
    for label in ("Spectron", "LoRA-Muon"):
        sizes = []
        for share in shares:
            torch.manual_seed(0)
            layer = LowRankLinear(128, 96, rank_ratio=0.25)
            with torch.no_grad():
                layer.A.mul_(share)
                layer.B.div_(share)
            x = torch.randn(256, 128, generator=torch.Generator().manual_seed(1))
            target = torch.randn(256, 96, generator=torch.Generator().manual_seed(2))
            (layer(x) - target).square().mean().backward()
            before = layer.materialize().detach().clone()
            pair = {"layer": (layer.A, layer.B)}
            if label == "Spectron":
                optimizer: Optimizer = Spectron([layer.A, layer.B], lr=lr)
                SpectralRenormalization().hold(pair).before_step(optimizer)
            else:
                optimizer = LoRAMuon([layer.A, layer.B], lr=lr)
                PartnerMetric().hold(pair).before_step(optimizer)
            optimizer.step()
            sizes.append(norm(layer.materialize().detach() - before) / lr)
        axes.semilogx(shares, sizes, label=label)
    axes.axhline(1, color="#888888", linewidth=1, linestyle="--")
    axes.set(xlabel="t, for A t and B / t", ylabel="‖ΔW‖₂ / η of one step", ylim=(0, 1.2))
    axes.legend(loc="lower center")
    return figure


def retraction() -> Figure:
    """How far QR and the function-preserving retraction move W = V diag(s) Uᵀ, by the size of the step before them."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    u, _ = orthonormalize(torch.randn(128, 16, generator=generator, dtype=torch.float64))
    v, _ = orthonormalize(torch.randn(96, 16, generator=generator, dtype=torch.float64))
    s = torch.linspace(1.5, 0.5, 16, dtype=torch.float64)
    du, dv = (torch.randn(*x.shape, generator=generator, dtype=torch.float64) for x in (u, v))
    steps = np.logspace(-3, 0, 20)
    moved: dict[str, list[float]] = {"the step itself": [], "QR": [], "function-preserving": []}
    for size in steps:
        a, b = u + size * du / norm(du), v + size * dv / norm(dv)
        stepped = (b * s) @ a.mT
        (qu, ru), (qv, rv) = orthonormalize(a), orthonormalize(b)
        p, sigma, zt = torch.linalg.svd((rv * s) @ ru.mT)
        moved["the step itself"].append(norm(stepped - (v * s) @ u.mT))
        moved["QR"].append(norm((qv * s) @ qu.mT - stepped))
        moved["function-preserving"].append(norm((qv @ p * sigma) @ (qu @ zt.mT).mT - stepped))
    figure, axes = pyplot.subplots(figsize=(4.6, 3.0))
    for label, values in moved.items():
        axes.loglog(steps, np.maximum(values, 1e-17), label=label)
    axes.set(xlabel="‖ΔU‖₂ = ‖ΔV‖₂ of the step", ylabel="‖ΔW‖₂")
    axes.legend()
    return figure


def initial_scales() -> Figure:
    """Standard deviation of the entries of a square W at the start, by rule and width."""
    width = np.logspace(np.log10(128), np.log10(8192), 50)
    figure, axes = pyplot.subplots(figsize=(4.6, 3.0))
    axes.loglog(width, width**-0.5, label="fan_in: 1/√in")
    axes.loglog(width, 2**0.5 / width, label="width: √2/width")
    axes.loglog(width, np.full_like(width, 0.02), label="gpt2: 0.02")
    axes.set(xlabel="model width", ylabel="standard deviation of W's entries")
    axes.legend()
    return figure


def schedules() -> Figure:
    """The share of the learning rate over 200 steps."""
    figure, axes = pyplot.subplots(figsize=(4.6, 2.6))
    for kind, label in ((WarmupCosine, "WarmupCosine"), (WarmupStableDecay, "WarmupStableDecay")):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = kind(optimizer, 200)
        rates = []
        for _ in range(200):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        axes.plot(rates, label=label)
    axes.set(xlabel="step", ylabel="share of lr", ylim=(0, 1.05))
    axes.legend(loc=(0.08, 0.08))
    return figure


FIGURES = {
    function.__name__: function
    for function in (
        parameters_by_rank,
        update_norms,
        newton_schulz,
        balance,
        retraction,
        initial_scales,
        schedules,
    )
}
