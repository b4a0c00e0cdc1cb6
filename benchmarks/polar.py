"""`lrtrain.linalg.polar` against the usual Newton–Schulz iteration, float32, on every factor shape of Spectron S and L.

    python -m benchmarks.polar

The usual form iterates on the matrix itself, turned so that its rows are the shorter side, with products fused into
additions as in torch's Muon: A = XXᵀ, X ← aX + (bA + cA²)X. `separate ms` is the same with each sum by itself.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import command_line, compare, report
from benchmarks.shapes import SIZES, factor_shapes
from lrtrain.linalg import polar
from lrtrain.linalg.newton_schulz import PAPER
from lrtrain.runtime.allocator import keep_freed_memory

LOW_RANK = [(8192, 32), (28672, 32)]


def usual(x: Tensor, steps: int = 5) -> Tensor:
    a, b, c = PAPER
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def separate(x: Tensor, steps: int = 5) -> Tensor:
    a, b, c = PAPER
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def error(x: Tensor, o: Tensor) -> float:
    exact = usual(x.double())
    return float((o.double() - exact).norm() / exact.norm())


def required(rows: int, rank: int) -> float:
    """The speed-up that is asked for: 7 at rank 32, 2 from four rows a column, and nowhere slower."""
    return 7.0 if rank == 32 else 2.0 if rows >= 4 * rank else 1.0


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = options.parse_args()
    keep_freed_memory()  # as `lrtrain fit` does, for both sides
    shapes = sorted({shape for size in SIZES for shape in factor_shapes(size)})
    table = []
    for rows, rank in [*shapes, *LOW_RANK]:
        torch.manual_seed(0)
        x = torch.randn(rows, rank, device=arguments.device)
        seconds = compare(
            {
                "usual": partial(usual, x),
                "separate": partial(separate, x),
                "ours": partial(polar, x),
                "bf16": partial(polar, x, precision="bfloat16"),
            },
            arguments.repeats,
        )
        ratio = seconds["usual"] / seconds["ours"]
        table.append(
            {
                "rows": rows,
                "rank": rank,
                "usual ms": seconds["usual"] * 1e3,
                "separate ms": seconds["separate"] * 1e3,
                "ours ms": seconds["ours"] * 1e3,
                "bf16 ms": seconds["bf16"] * 1e3,
                "usual error": error(x, usual(x)),
                "our error": error(x, polar(x)),
                "bf16 error": error(x, polar(x, precision="bfloat16")),
                "ratio": ratio,
                "required": required(rows, rank),
                "met": ratio >= required(rows, rank),
            }
        )
    report(table, "polar", arguments.out)


if __name__ == "__main__":
    main()
