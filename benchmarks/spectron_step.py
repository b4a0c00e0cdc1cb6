"""A whole Spectron step, with the measurement of the norms, against `torch.optim.Muon` on the same parameters.

    python -m benchmarks.spectron_step [--size S]

Errors are those of the update ΔX/‖ΔX‖_F of all factors together against the same algorithm in float64, from momenta of
two kinds: Gaussian, and with singular values that fall as 1/k, as a trained model's do.
"""

import math

import torch
from torch import Tensor, nn

from benchmarks.measure import command_line, compare, report
from benchmarks.shapes import SIZES, factor_shapes, pairs_of
from lrtrain.constraints import SpectralRenormalization
from lrtrain.optim import Spectron
from lrtrain.runtime.allocator import keep_freed_memory

REQUIRED = {"bfloat16": 0.8, "float32": 1.5}


def parameters(size: str, device: str) -> list[nn.Parameter]:
    torch.manual_seed(0)
    factors = [nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in factor_shapes(size)]
    for factor in factors:
        factor.grad = torch.randn_like(factor)
    return factors


class SpectronStep:
    """`SpectralRenormalization.before_step` and `Spectron.step`."""

    def __init__(self, factors: list[nn.Parameter], precision: str, momentum: float = 0.95) -> None:
        self.optimizer = Spectron(factors, lr=0.01, momentum=momentum, precision=precision)  # type: ignore[arg-type]
        self.constraint = SpectralRenormalization().hold(pairs_of(factors))

    def __call__(self) -> None:
        self.constraint.before_step(self.optimizer)
        self.optimizer.step()


def usual(x: Tensor) -> Tensor:
    """Newton–Schulz in float64, the coefficients that both optimizers use."""
    x = x.double() / x.double().norm()
    for _ in range(5):
        gram = x.mT @ x
        x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
    return x


def errors(kind: str, device: str) -> dict[str, float]:
    """Relative error of one update from given gradients, without momentum, over the factor shapes of S."""
    generator = torch.Generator().manual_seed(0)
    totals: dict[str, list[float]] = {"muon": [], "float32": [], "bfloat16": []}
    for rows, rank in sorted(set(factor_shapes("S"))):
        gradient = torch.randn(rows, rank, generator=generator)
        if kind == "1/k":
            p, _, q = torch.linalg.svd(gradient, full_matrices=False)
            gradient = (p / torch.arange(1, rank + 1)) @ q
        exact = usual(gradient)
        for name, found in totals.items():
            x = nn.Parameter(torch.zeros(rows, rank, device=device))
            x.grad = gradient.to(device)
            if name == "muon":
                torch.optim.Muon([x], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).step()
                scale = math.sqrt(max(1, rows / rank))  # its own adjustment of the learning rate
            else:
                Spectron([x], lr=1.0, momentum=0.0, precision=name).step()  # type: ignore[arg-type]
                scale = 1.0
            found.append(float((-x.detach().cpu().double() / scale - exact).norm() / exact.norm()))
    return {name: max(found) for name, found in totals.items()}


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("--size", choices=SIZES, default="S")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = options.parse_args()
    keep_freed_memory()  # as `lrtrain fit` does, for both sides
    muon = torch.optim.Muon(parameters(arguments.size, arguments.device), lr=0.01, weight_decay=0.0)
    ours = {name: SpectronStep(parameters(arguments.size, arguments.device), name) for name in REQUIRED}
    seconds = compare({"muon": muon.step, **ours}, arguments.repeats, warmup=2)
    gaussian, falling = errors("gaussian", arguments.device), errors("1/k", arguments.device)
    table = []
    for name, limit in REQUIRED.items():
        ratio = seconds[name] / seconds["muon"]
        bound = {"float32": (1e-3, 1e-3), "bfloat16": (gaussian["muon"], falling["muon"])}[name]
        table.append(
            {
                "precision": name,
                "muon s": seconds["muon"],
                "ours s": seconds[name],
                "muon error": gaussian["muon"],
                "our error": gaussian[name],
                "muon error 1/k": falling["muon"],
                "our error 1/k": falling[name],
                "ratio": ratio,
                "required": limit,
                "met": ratio <= limit and gaussian[name] <= bound[0] and falling[name] <= bound[1],
            }
        )
    report(table, f"spectron_step_{arguments.size}", arguments.out)


if __name__ == "__main__":
    main()
