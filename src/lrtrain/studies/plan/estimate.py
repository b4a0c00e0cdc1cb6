"""A plan: everything that is known of a run before it starts, as data that JSON takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrtrain.config.overlaid import overlaid
from lrtrain.config.plan_parser import parse
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.activations import Activations
from lrtrain.studies.plan.optimizer_step import SlotBytes, slot_bytes
from lrtrain.studies.plan.parameters_and_flops import Costs, Kind, costs, parameters_by_kind
from lrtrain.studies.plan.peak_memory import Memory, MemoryModel
from lrtrain.studies.plan.plan_settings import PRECISIONS, Budget, Run, budget, layouts, read_run, recorded_throughput
from lrtrain.studies.plan.planned_model import model_of


@dataclass(frozen=True)
class Line:
    """One layout: memory with and without activation checkpointing, the largest micro-batch of each, and the time.

    `seconds` to the budget assume that throughput grows with the number of devices.
    """

    strategy: str
    replicas: int
    shards: int
    devices: int
    kept: Memory
    recomputed: Memory
    largest_micro_batch: int | None
    largest_micro_batch_recomputed: int | None
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What `lrtrain plan` prints; `as_dict` is what it writes."""

    run: Run
    kinds: list[Kind]
    costs: Costs
    slots: list[SlotBytes]
    lines: list[Line]
    limit: float | None
    budget: Budget | None
    throughput: float | None
    overlaid: list[str]

    @property
    def parameters(self) -> int:
        return sum(kind.parameters for kind in self.kinds)

    @property
    def dense_parameters(self) -> int:
        return sum(kind.dense for kind in self.kinds)

    @property
    def flops_per_token(self) -> float:
        """All FLOPs of a token of training, the optimizer's step shared among its tokens."""
        step = self.costs.optimizer + sum(self.costs.constraints.values())
        return self.costs.token + self.costs.recompute + self.costs.loss + step / self.run.step_tokens

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
            "optimizers": [asdict(slot) for slot in self.slots],
            "precision": self.run.precision,
            "micro_batch": {"sequences": self.run.batch, "tokens": self.run.tokens, "memory_limit": self.limit},
            "memory": [asdict(line) for line in self.lines],
            "budget": None if self.budget is None else asdict(self.budget),
            "throughput": self.throughput,
        }


def make_plan(
    argv: list[str],
    devices: Sequence[int] | None = None,
    shards: int | None = None,
    memory: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    throughput: float | None = None,
    like: str | None = None,
) -> Plan:
    """Plans a run.

    Args:
        argv: The configuration, as `fit` takes it.
        devices: Numbers of processes whose memory is estimated; None for the configuration's.
        shards: Processes of one copy under hsdp; None for the configuration's.
        memory: Memory of one process in bytes; the largest micro-batch that fits is searched.
        tokens: Budget in tokens.
        flops: Budget in FLOPs of forward and backward pass.
        throughput: Tokens a second of one device.
        like: Name of a recorded run whose throughput is taken as one device's.

    Raises:
        UserError: settings that cannot be planned.
    """
    parser, config = parse(argv)
    said = overlaid(parser.settings, config)
    run = read_run(config)
    chosen = layouts(devices or [run.devices], shards or run.shards)
    speed = throughput if like is None else recorded_throughput(config.runs, like)
    if speed is not None and run.steps is None and tokens is None and flops is None:
        raise UserError("the time needs a budget: give --tokens or --flops, or set trainer.max_steps")
    model = model_of(parser, config)
    weights, compute = PRECISIONS[run.precision]
    slots = [slot_bytes(slot, model.makers[slot.pattern], run.on_cpu, weights) for slot in model.slots]
    activations = Activations(model.decoder, run.tokens, weights, compute, model.loss)
    process = MemoryModel(model.decoder, activations, slots, accumulates=run.accumulate > 1)
    spent = costs(model, run)
    found = budget(tokens, flops, run.steps, run.step_tokens, spent.token)
    lines = [
        Line(
            **asdict(layout),
            devices=layout.devices,
            kept=process.at(run.batch, layout, recompute=False),
            recomputed=process.at(run.batch, layout, recompute=True),
            largest_micro_batch=None if memory is None else process.largest(memory, layout, recompute=False),
            largest_micro_batch_recomputed=None if memory is None else process.largest(memory, layout, recompute=True),
            seconds=None if found is None or speed is None else found.tokens / (speed * layout.devices),
        )
        for layout in chosen
    ]
    return Plan(run, parameters_by_kind(model.decoder), spent, slots, lines, memory, found, speed, said)
