"""A plan: everything that is known of a run before it starts, as data that JSON takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrtrain.studies.plan.activations import Activations
from lrtrain.studies.plan.budget import Budget, budget
from lrtrain.studies.plan.costs import Costs, costs
from lrtrain.studies.plan.layouts import Layout
from lrtrain.studies.plan.optimizer_bytes import SlotBytes, slot_bytes
from lrtrain.studies.plan.parameter_counts import Kind, parameters_by_kind
from lrtrain.studies.plan.peak_memory import Memory, MemoryModel
from lrtrain.studies.plan.planned_model import PlannedModel
from lrtrain.studies.plan.request import PRECISIONS, Run


@dataclass(frozen=True)
class Line:
    """One layout's memory, with and without activation checkpointing, and the largest micro-batch of each."""

    layout: Layout
    kept: Memory
    recomputed: Memory
    largest_kept: int | None
    largest_recomputed: int | None


@dataclass(frozen=True)
class Plan:
    """What `lrtrain plan` prints; `as_dict` is what it writes."""

    run: Run
    kinds: list[Kind]
    costs: Costs
    slots: list[tuple[str, SlotBytes]]
    lines: list[Line]
    limit: float | None
    budget: Budget | None
    throughput: float | None

    @property
    def parameters(self) -> int:
        return sum(kind.parameters for kind in self.kinds)

    @property
    def dense_parameters(self) -> int:
        return sum(kind.dense for kind in self.kinds)

    @property
    def flops_per_token(self) -> float:
        """All FLOPs of a token of training."""
        return self.costs.per_token(self.run.step_tokens)

    def seconds(self, devices: int) -> float | None:
        """Time to the budget on some devices, the throughput of one times their number."""
        if self.budget is None or self.throughput is None:
            return None
        return self.budget.tokens / (self.throughput * devices)

    def as_dict(self) -> dict[str, Any]:
        return {
            "parameters": {
                "total": self.parameters,
                "dense": self.dense_parameters,
                "kinds": [asdict(kind) for kind in self.kinds],
            },
            "flops": {
                **asdict(self.costs),
                "tokens_per_step": self.run.step_tokens,
                "per_token": self.flops_per_token,
            },
            "optimizers": [{"pattern": pattern, **asdict(slot)} for pattern, slot in self.slots],
            "precision": self.run.precision,
            "micro_batch": {"sequences": self.run.batch, "tokens": self.run.tokens, "memory_limit": self.limit},
            "memory": [
                {
                    **asdict(line.layout),
                    "devices": line.layout.devices,
                    "kept": asdict(line.kept),
                    "recomputed": asdict(line.recomputed),
                    "largest_micro_batch": line.largest_kept,
                    "largest_micro_batch_recomputed": line.largest_recomputed,
                    "seconds": self.seconds(line.layout.devices),
                }
                for line in self.lines
            ],
            "budget": None if self.budget is None else asdict(self.budget),
            "throughput": self.throughput,
        }


def make_plan(
    model: PlannedModel,
    run: Run,
    layouts: Sequence[Layout],
    limit: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    throughput: float | None = None,
) -> Plan:
    """Plans a run.

    Args:
        model: Decoder and optimizers, on the meta device.
        run: Its settings.
        layouts: For which to tell the memory of a process.
        limit: Bytes of one process, for the largest micro-batch.
        tokens: Budget in tokens.
        flops: Budget in FLOPs of forward and backward pass.
        throughput: Tokens a second of one device.
    """
    weights, compute = PRECISIONS[run.precision]
    slots = [(s.pattern, slot_bytes(s, model.makers[s.pattern], run.on_cpu, weights)) for s in model.slots]
    memory = MemoryModel(
        model.decoder,
        Activations(model.decoder, run.tokens, weights, compute, model.loss),
        [slot for _, slot in slots],
        accumulates=run.accumulate > 1,
    )
    lines = []
    for layout in layouts:
        kept, recomputed = (memory.at(run.batch, layout, recompute) for recompute in (False, True))
        largest = [None if limit is None else memory.largest(limit, layout, recompute) for recompute in (False, True)]
        lines.append(Line(layout, kept, recomputed, *largest))
    spent = costs(model, run.tokens, run.recompute, run.constraints)
    return Plan(
        run=run,
        kinds=parameters_by_kind(model.decoder),
        costs=spent,
        slots=slots,
        lines=lines,
        limit=limit,
        budget=budget(tokens, flops, run.steps, run.step_tokens, spent.token),
        throughput=throughput,
    )
