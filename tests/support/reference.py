"""Plain float64 twins of the fast paths: slow, short, and written from the formulas of the papers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315


def matrix(rows: int, columns: int, condition: float, seed: int) -> Tensor:
    """A float64 matrix with random singular vectors and singular values from 1 down to 1/condition."""
    generator = torch.Generator().manual_seed(seed)
    smaller = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, smaller, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, smaller, generator=generator, dtype=torch.float64)).Q
    return (left * condition ** -torch.linspace(0, 1, smaller, dtype=torch.float64)) @ right.mT


def polar_newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """The iteration on X itself: X ← aX + b(XXᵀ)X + c(XXᵀ)²X from X/‖X‖_F."""
    x = x.double() / x.double().norm()
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + B * gram @ x + C * gram @ gram @ x
    return x


def usual_newton_schulz(x: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """The iteration on a tall X itself, every product and sum in one dtype, as torch.optim.Muon does it."""
    x = (x / x.norm()).to(dtype)
    for _ in range(steps):
        gram = x.mT @ x
        x = torch.addmm(x, x, torch.addmm(gram, gram, gram, beta=B, alpha=C), beta=A)
    return x


def distance(o: Tensor, x: Tensor, steps: int = 5) -> float:
    """Of o from the iteration in float64, relative to that."""
    plain = usual_newton_schulz(x.double(), torch.float64, steps)
    return float((o.double() - plain).norm() / plain.norm())


MOMENTA = ("gaussian", "rank 1", "rank 2", "equal columns", "one over noise", "one far over noise", "four over noise")
MOMENTA += ("1/k", "2^-k")
"""Kinds of momenta: full and the lowest ranks, a few leading directions over noise, spectra that fall."""


def momentum(kind: str, rows: int, columns: int) -> Tensor:
    """A float32 matrix of one of `MOMENTA`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def product(rank: int) -> Tensor:
        x = draw(rows, rank) @ draw(rank, columns)
        return x / x.norm()

    def falling(values: Tensor) -> Tensor:
        left, right = (torch.linalg.qr(draw(n, columns)).Q for n in (rows, columns))
        return (left * values) @ right.mT

    k = torch.arange(1, columns + 1, dtype=torch.float64)
    noise = draw(rows, columns) / (rows * columns) ** 0.5
    made = {
        "gaussian": lambda: noise,
        "rank 1": lambda: product(1),
        "rank 2": lambda: product(2),
        "equal columns": lambda: draw(rows, 1).expand(rows, columns),
        "one over noise": lambda: product(1) + 0.5 * noise,
        "one far over noise": lambda: product(1) + 0.05 * noise,
        "four over noise": lambda: product(4) + 0.1 * noise,
        "1/k": lambda: falling(1 / k),
        "2^-k": lambda: falling(2.0**-k),
    }
    return made[kind]().float().contiguous()


def polar_exact(x: Tensor) -> Tensor:
    """P Qᵀ of X = P Σ Qᵀ."""
    p, _, q = torch.linalg.svd(x.double(), full_matrices=False)
    return p @ q


def norm(x: Tensor) -> float:
    """‖X‖₂ by SVD."""
    return float(torch.linalg.svdvals(x.detach().double())[0])


def qr(x: Tensor) -> tuple[Tensor, Tensor]:
    """Modified Gram–Schmidt, column by column: its R has a positive diagonal by construction. X has full rank."""
    q = x.double().clone()
    r = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for i in range(x.shape[1]):
        r[i, i] = q[:, i].norm()
        q[:, i] /= r[i, i]
        for j in range(i + 1, x.shape[1]):
            r[i, j] = q[:, i] @ q[:, j]
            q[:, j] -= r[i, j] * q[:, i]
    return q, r


def spectron(
    pairs: Sequence[tuple[Tensor, Tensor]],
    gradients: Callable[[list[Tensor]], list[Tensor]],
    rates: Sequence[float],
    momentum: float = 0.95,
    orthogonalize: bool = True,
    renormalize: bool = True,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """Spectron, arXiv 2602.12429, Algorithms 1 to 3, one factor after the other; `nesterov` is not in the paper.

    Decay is that of the product, W ← (1 − λ η) W, spread evenly over its factors.

    `gradients` maps the factors [A₁, B₁, A₂, B₂, …] to their gradients; one step for each rate. Power iteration makes
    20 steps in its first call, from a fixed vector, and one in every later call.
    """
    factors = [factor.double().clone() for pair in pairs for factor in pair]
    momenta = [torch.zeros_like(factor) for factor in factors]
    vectors = [_first_vector(factor.shape[1]) for factor in factors]
    for step, eta in enumerate(rates):
        sigmas = []
        for index, factor in enumerate(factors):
            for _ in range(20 if step == 0 else 1):
                u = factor @ vectors[index]
                u = u / u.norm()
                w = factor.mT @ u
                sigma = w.norm()
                vectors[index] = w / sigma
            sigmas.append(float(sigma))
        updated = []
        for index, (factor, gradient) in enumerate(zip(factors, gradients(factors), strict=True)):
            momenta[index] = momentum * momenta[index] + (1 - momentum) * gradient
            ahead = momentum * momenta[index] + (1 - momentum) * gradient
            update = ahead if nesterov else momenta[index]
            update = polar_newton_schulz(update) if orthogonalize else update
            first = index - index % 2
            rho = eta / (sigmas[first] + sigmas[first + 1] + 1) if renormalize else eta
            updated.append((1 - weight_decay * eta) ** 0.5 * factor - rho * update)
        factors = updated
    return factors


def lora_muon(
    pairs: Sequence[tuple[Tensor, Tensor]],
    gradients: Callable[[list[Tensor]], list[Tensor]],
    rates: Sequence[float],
    momentum: float = 0.95,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """LoRA-Muon, arXiv 2606.12921, by eigenvectors, one factor after the other; one step for each rate."""
    factors = [factor.double().clone() for pair in pairs for factor in pair]
    momenta = [torch.zeros_like(factor) for factor in factors]
    for eta in rates:
        s = (1 - weight_decay * eta) ** 0.5
        roots = [inverse_square_root(factor) for factor in factors]
        steps = []
        for index, gradient in enumerate(gradients(factors)):
            momenta[index] = momentum * momenta[index] + (1 - momentum) * gradient
            m = momentum * momenta[index] + (1 - momentum) * gradient if nesterov else momenta[index]
            root = roots[index ^ 1]
            steps.append(-eta / 2 * polar_newton_schulz(m @ root) @ root)
        factors = [s * factor + step / s for factor, step in zip(factors, steps, strict=True)]
    return factors


def inverse_square_root(x: Tensor) -> Tensor:
    """S^(−½) of S = XᵀX + 1e-6 tr(XᵀX) I."""
    gram = x.double().mT @ x.double()
    values, vectors = torch.linalg.eigh(gram + 1e-6 * gram.trace() * torch.eye(len(gram), dtype=torch.float64))
    return vectors * values.rsqrt() @ vectors.mT


def _first_vector(rank: int) -> Tensor:
    vector = torch.randn(rank, generator=torch.Generator().manual_seed(0))
    return (vector / vector.norm()).double()


def tangent(x: Tensor, z: Tensor) -> Tensor:
    """Z without the part X sym(XᵀZ) that is normal to the Stiefel manifold at X."""
    x, z = x.double(), z.double()
    return z - x @ (x.mT @ z + z.mT @ x) / 2


def stiefel(
    x: Tensor,
    gradients: Sequence[Tensor],
    lr: float,
    momentum: float,
    nesterov: bool = True,
    direction: str = "polar",
    beta2: float = 0.95,
    scale: Tensor | None = None,
) -> Tensor:
    """X after one step for each gradient, with no retraction; Adam's direction with its bias corrections."""
    x = x.double().clone()
    c = torch.ones(x.shape[1], dtype=torch.float64) if scale is None else scale.double()
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for step, gradient in enumerate(gradients, 1):
        g = gradient.double()
        m = momentum * m + (1 - momentum) * g
        v = beta2 * v + (1 - beta2) * g * g
        d = (momentum * m + (1 - momentum) * g if nesterov else m) * c
        if direction == "polar":
            d = polar_newton_schulz(d)
        else:
            d = (d / (1 - momentum**step)) / (v / (1 - beta2**step)).sqrt()
            d = d / d.norm(dim=0)
        x = x - lr * d * c
    return x


def weight_figures(old: Tensor, new: Tensor, rank: int) -> dict[str, float]:
    """What can be said of W and W' (out, in) alone, in float64."""
    old, new = old.detach().double(), new.detach().double()
    change, sigma = new - old, torch.linalg.svdvals(new)[:rank]
    shares = sigma / sigma.sum()
    return {
        "update_norm": norm(change),
        "update_over_weight": float(change.norm() / new.norm()),
        "weight_norm": float(sigma[0]),
        "effective_rank": float((-shares * shares.log()).sum().exp()),
        "stable_rank": float(new.norm() ** 2 / sigma[0] ** 2),
        "dead_directions": sum(value <= 1e-3 * float(sigma[0]) for value in sigma.tolist()) / rank,
    }
