"""Real training steps of the models that memory plans are compared with, and what they took.

As a program it prints `kind recompute bytes` lines: by how much resident memory grew at most, in 32-true. Run it with
MALLOC_MMAP_THRESHOLD_, so that glibc gives back what is freed; else it keeps each phase's blocks beside the others'.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lrtrain.constraints import Constraint, SpectralRenormalization, StiefelRetraction, find_factors
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SpectralLinear
from lrtrain.optim import Optimizers, Spectron, build_optimizer
from lrtrain.studies.plan.activations import Activations
from lrtrain.studies.plan.live_bytes import LiveBytes
from lrtrain.studies.plan.optimizer_step import slot_bytes
from lrtrain.studies.plan.peak_memory import Memory, MemoryModel
from lrtrain.studies.plan.plan_settings import Layout
from lrtrain.studies.plan.planned_model import PlannedModel, planned_model


class Size(NamedTuple):
    """Of a decoder and its micro-batch."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    ffn_width: int
    tokens: int
    batch: int


TOY = Size(4096, 128, 4, 4, 384, 128, 4)
MEASURED = Size(8000, 256, 4, 4, 704, 256, 8)
KINDS = ("dense", "spectron", "sct")
ONE_DEVICE = Layout("one device", 1, 1)
COMPUTE = {"32-true": None, "bf16-mixed": torch.bfloat16}


def projection(kind: str, in_features: int, out_features: int) -> nn.Module:
    if kind == "dense":
        return DenseLinear(in_features, out_features)
    if kind == "spectron":
        return LowRankLinear(in_features, out_features, rank_ratio=0.25)
    return SpectralLinear(in_features, out_features, rank=32)


def decoder(kind: str, size: Size, depth: int) -> Decoder:
    """Of a kind; `unlike` is low-rank with blocks of other ranks, and one that is dense."""

    def linear(in_features: int, out_features: int) -> nn.Module:
        return projection("spectron" if kind == "unlike" else kind, in_features, out_features)

    sizes = size.vocabulary, size.width, depth, size.heads, size.ffn_width
    overrides = {"blocks.1.*": DenseLinear, "blocks.2.mlp.*": partial(LowRankLinear, rank=120)}
    return Decoder(*sizes, linear, linear, overrides=overrides if kind == "unlike" else None)


def optimizers(kind: str) -> Optimizers:
    return Optimizers(hidden=Spectron if kind == "spectron" else torch.optim.AdamW, other=torch.optim.AdamW)


def planned(kind: str, size: Size) -> PlannedModel:
    if kind == "unlike":
        return planned_model(lambda: decoder(kind, size, size.depth), None, optimizers(kind))
    return planned_model(lambda depth: decoder(kind, size, depth), size.depth, optimizers(kind))


def memory_model(kind: str, size: Size, precision: str, accumulates: bool = False) -> MemoryModel:
    model = planned(kind, size)
    slots = [slot_bytes(slot, model.makers[slot.pattern], on_cpu=True) for slot in model.slots]
    activations = Activations(model.decoder, size.tokens, torch.float32, COMPUTE[precision])
    return MemoryModel(model.decoder, activations, slots, accumulates)


def predicted(kind: str, size: Size, recompute: bool, precision: str, accumulates: bool = False) -> Memory:
    return memory_model(kind, size, precision, accumulates).at(size.batch, ONE_DEVICE, recompute)


class Trained:
    """A decoder with its optimizer and constraints, as `CausalLM` puts them together."""

    def __init__(self, kind: str, size: Size, recompute: bool) -> None:
        self.size = size
        self.decoder = decoder(kind, size, size.depth)
        for block in self.decoder.blocks:
            block.recompute = recompute
        named = dict(self.decoder.named_parameters())
        hidden = {name for name in named if name.rpartition(".")[2] in ("weight", "A", "B", "U", "s", "V")}
        hidden = {name for name in hidden if ".attention." in name or ".mlp." in name}
        self.optimizer, _ = build_optimizer(named, hidden, optimizers(kind))
        pairs, orthonormal = find_factors(self.decoder)
        self.constraints: list[Constraint] = []
        if kind == "spectron":
            self.constraints.append(SpectralRenormalization().hold(pairs))
        if orthonormal:
            self.constraints.append(StiefelRetraction().hold(orthonormal))

    def step(self, precision: str, micro_batches: int = 1) -> None:
        for _ in range(micro_batches):
            batch = torch.randint(self.size.vocabulary, (self.size.batch, self.size.tokens + 1))
            self._backward(batch, precision)
        for constraint in self.constraints:
            constraint.before_step(self.optimizer)
        self.optimizer.step()
        for constraint in self.constraints:
            constraint.after_step()
        self.optimizer.zero_grad()

    def _backward(self, batch: Tensor, precision: str) -> None:
        dtype = COMPUTE[precision]
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = self.decoder.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()


def live_peak(kind: str, size: Size, recompute: bool, precision: str, micro_batches: int = 1) -> int:
    """Most bytes of live tensors in the second of two steps, weights and all."""
    with LiveBytes() as live:
        trained = Trained(kind, size, recompute)
        trained.step(precision, micro_batches)
        live.restart()
        trained.step(precision, micro_batches)
        return live.peak


def resident_peak(kind: str, size: Size, recompute: bool) -> int:
    """Bytes by which this process grew at most in two steps."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    trained = Trained(kind, size, recompute)
    trained.step("32-true")
    trained.step("32-true")
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in KINDS:
        for recompute in (False, True):
            resident_peak(kind, TOY, recompute)  # loads what the first steps of a process need
            print(kind, recompute, resident_peak(kind, MEASURED, recompute))
