"""A whole LoRAMuon step, with the roots of its partners' Gram matrices, against a whole Spectron step.

    python -m benchmarks.lora_muon_step [--size S]

In bfloat16 Spectron's products are all in bfloat16; LoRAMuon's with the roots stay float32, for the metric may be
ill-conditioned. So the goal is that of the default, float32.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import command_line, compare, report
from benchmarks.shapes import SIZES, pairs_of
from benchmarks.spectron_step import SpectronStep, parameters
from lrtrain.constraints import PartnerMetric
from lrtrain.optim import LoRAMuon
from lrtrain.runtime.allocator import keep_freed_memory

REQUIRED = 1.3


class LoRAMuonStep:
    """`PartnerMetric.before_step` and `LoRAMuon.step`."""

    def __init__(self, factors: list[nn.Parameter], precision: str) -> None:
        self.optimizer = LoRAMuon(factors, lr=0.01, precision=precision)  # type: ignore[arg-type]
        self.constraint = PartnerMetric().hold(pairs_of(factors))

    def __call__(self) -> None:
        self.constraint.before_step(self.optimizer)
        self.optimizer.step()


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("--size", choices=SIZES, default="S")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = options.parse_args()
    keep_freed_memory()
    table = []
    for precision in ("bfloat16", "float32"):
        steps: dict[str, Callable[[], object]] = {
            "spectron": SpectronStep(parameters(arguments.size, arguments.device), precision),
            "lora_muon": LoRAMuonStep(parameters(arguments.size, arguments.device), precision),
        }
        seconds = compare(steps, arguments.repeats, warmup=2)
        ratio = seconds["lora_muon"] / seconds["spectron"]
        row = {"precision": precision, **{f"{name} s": taken for name, taken in seconds.items()}}
        table.append({**row, "ratio": ratio, "required": REQUIRED, "met": ratio <= REQUIRED})
    report(table, f"lora_muon_step_{arguments.size}", arguments.out)


if __name__ == "__main__":
    main()
