"""A plan as tables of text."""

from dataclasses import astuple

from lrtrain.runtime.table import table
from lrtrain.runtime.units import duration, short
from lrtrain.studies.plan.estimate import Plan

GB = 1e9


def report(plan: Plan) -> str:
    """What overlays took away, parameters, FLOPs, memory, and the budget."""
    said = ["\n".join(plan.overlaid)] if plan.overlaid else []
    return "\n\n".join([*said, _parameters(plan), _flops(plan), _memory(plan), *_budget(plan)])


def _parameters(plan: Plan) -> str:
    rows = [["parameters", "form", "number", "dense", "share"]]
    total = ["total", "", f"{plan.parameters:,}", f"{plan.dense_parameters:,}"]
    for kind in plan.kinds:
        share = f"{kind.parameters / kind.dense:.1%}" if kind.dense else ""
        rows.append([kind.name, kind.form, f"{kind.parameters:,}", f"{kind.dense:,}", share])
    rows.append([*total, f"{plan.parameters / plan.dense_parameters:.1%}"])
    return table(rows)


def _flops(plan: Plan) -> str:
    costs, tokens = plan.costs, plan.run.step_tokens
    parts = [
        ("forward", costs.forward),
        ("backward", costs.backward),
        ("recomputation", costs.recompute),
        ("loss", costs.loss),
        ("optimizer", costs.optimizer / tokens),
        *((name, spent / tokens) for name, spent in costs.constraints.items()),
    ]
    rows = [["FLOPs of a token", "", "share"]]
    total = plan.flops_per_token
    rows += [[name, short(value), f"{value / total:.2%}"] for name, value in parts if value]
    rows.append(["total", short(total), ""])
    rows.append(["dense forward", short(costs.dense), ""])
    told = f"steps of {tokens:,} tokens; sequences of {plan.run.tokens:,}"
    if plan.run.as_many_as_there_are and not plan.run.on_cpu:
        told += "; one process a node, where trainer.devices takes as many as there are"
    return "\n".join([table(rows), told, *costs.notes])


def _memory(plan: Plan) -> str:
    device = "CPU" if plan.run.on_cpu else "GPU"
    heads = ["GB of one process", "mesh", "checkpointing", "weights", "gradients", "optimizer", "activations", "loss"]
    rows = [[*heads, "step", "peak", "in"]]
    if plan.limit is not None:
        rows[0].append("largest micro-batch")
    for line in plan.lines:
        name = line.strategy if line.devices == 1 else f"{line.strategy}, {line.devices} devices"
        for mark, memory, largest in (
            ("off", line.kept, line.largest_micro_batch),
            ("on", line.recomputed, line.largest_micro_batch_recomputed),
        ):
            *sizes, phase = astuple(memory)
            row = [name, f"{line.replicas} × {line.shards}", mark, *(f"{size / GB:.3f}" for size in sizes), phase]
            if plan.limit is not None:
                row.append(str(largest) if largest else "none fits")
            rows.append(row)
    states = ", ".join(f"{slot.name} {slot.state / GB:.3f}" for slot in plan.slots)
    notes = [
        f"micro-batch {plan.run.batch} × {plan.run.tokens}, {plan.run.precision}, {device}; mesh: replicas × shards",
        f"optimizer state, whole: {states}",
    ]
    if plan.limit is not None:
        notes.append(f"largest micro-batch: sequences whose peak is at most {plan.limit / GB:g} GB")
    return table(rows) + "\n" + "\n".join(notes)


def _budget(plan: Plan) -> list[str]:
    if plan.budget is None:
        return []
    found = plan.budget
    rows = [
        ["budget", found.source],
        ["tokens", f"{found.tokens:,.0f}"],
        ["optimizer steps", f"{found.steps:,}"],
        ["FLOPs", f"{found.flops:.3g}"],
    ]
    for devices, seconds in {line.devices: line.seconds for line in plan.lines}.items():
        if seconds is not None:
            speed = f"{found.tokens / seconds:,.0f} tokens/s"
            rows.append([f"{devices} device{'s' if devices > 1 else ''}", f"{duration(seconds)} at {speed}"])
    return [table(rows, numbers=False)]
