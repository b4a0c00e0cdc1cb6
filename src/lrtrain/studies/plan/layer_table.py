"""A model layer by layer: shapes, kinds, ranks, parameters, who trains them, and where the FLOPs are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from lrtrain.config.plan_parser import parse
from lrtrain.nn import Decoder, projections
from lrtrain.runtime.table import table
from lrtrain.runtime.units import short
from lrtrain.studies.plan.planned_model import PlannedModel, model_of


@dataclass(frozen=True)
class Layer:
    """A layer, or what a forward pass computes without one.

    Attributes:
        name: In the decoder; `blocks.0-11.mlp.up` stands for those of twelve blocks, which are alike.
        shape: Of its weight, outputs × inputs.
        kind: Its class.
        rank: Of a factorized weight; None where it has none.
        parameters: All of them together.
        optimizer: Of the parameters, with learning rates.
        flops: Forward FLOPs of a token.
        times: How many layers they are.
    """

    name: str
    shape: str
    kind: str
    rank: int | None
    parameters: int
    optimizer: str
    flops: int
    times: int = 1


def print_model(argv: list[str]) -> None:
    """Prints the table of a configuration's model, as `fit` takes it; nothing is allocated.

    Raises:
        UserError: a key that there is not, or a value of another type or out of range.
    """
    parser, config = parse(argv)
    data = config.data
    tokens = (data.init_args if "init_args" in data else data).get("block_size")
    print(layer_report(model_of(parser, config), tokens))


def layer_report(model: PlannedModel, tokens: int | None) -> str:
    """The table and its totals, for sequences of `tokens`; None where an own data module tells none."""
    layers = merged(layers_of(model, tokens or 0))
    total = sum(layer.flops for layer in layers)
    rows = [["layer", "×", "shape", "kind", "rank", "parameters", "optimizer, lr", "FLOPs"]]
    for layer in layers:
        rank = "" if layer.rank is None else str(layer.rank)
        share = f"{layer.flops / total:.1%}" if layer.flops else ""
        number = f"{layer.parameters:,}" if layer.parameters else ""
        rows.append([layer.name, str(layer.times), layer.shape, layer.kind, rank, number, layer.optimizer, share])
    parameters, dense = sum(p.numel() for p in model.decoder.parameters()), model.decoder.dense_equivalent()
    rows.append(["total", "", "", "", "", f"{parameters:,}", "", short(total)])
    told = (
        f"sequences of {tokens:,} tokens"
        if tokens
        else "without attention's products: the data names no length of a sequence"
    )
    notes = [
        f"FLOPs: of the forward pass, a token; forward and backward {short(3 * total)}; {told}",
        f"dense, it would have {dense:,} parameters; the optimizer's FLOPs and all memory: lrtrain plan",
    ]
    return "\n".join([table(rows), *notes])


def layers_of(model: PlannedModel, tokens: int) -> Iterator[Layer]:
    """Every layer with parameters, in the model's order, then what else costs FLOPs."""
    decoder = model.decoder
    trained = _optimizers(model)
    parts: dict[str, Any] = projections(decoder)
    spent = 0
    for name, module in decoder.named_modules():
        inside = next((path for path in parts if name != path and name.startswith(f"{path}.")), None)
        own = list(module.named_parameters(prefix=name, recurse=name in parts))
        if inside is not None or not own:
            continue
        flops, shape, rank = 0, _sizes(own[0][1]), None
        if name in parts:
            flops, rank = module.flops_per_token, _rank(module)
            shape = f"{module.out_features} × {module.in_features}"
        elif module is decoder.head:
            flops = 2 * decoder.head_VD.numel()
        spent += flops
        who = dict.fromkeys(trained.get(parameter, "none: frozen") for parameter, _ in own)
        count = sum(p.numel() for _, p in own)
        yield Layer(name or "decoder", shape, type(module).__name__, rank, count, ", ".join(who), int(flops))
    if decoder.head is None:
        spent += 2 * decoder.head_VD.numel()
        yield Layer("head", _sizes(decoder.head_VD), "tied to embedding", None, 0, "", 2 * decoder.head_VD.numel())
    if rest := decoder.flops_per_token(tokens) - spent:
        name = "attention's products" if type(decoder) is Decoder else "all else"
        yield Layer(name, "", "", None, 0, "", rest)


def merged(layers: Iterator[Layer]) -> list[Layer]:
    """One line for the layers of several blocks that are alike, in the order in which they come first."""
    found: dict[Layer, list[tuple[str, Layer]]] = {}
    for layer in layers:
        pattern, index = re.sub(r"\.\d+\.", ".*.", layer.name, count=1), re.search(r"\.(\d+)\.", layer.name)
        found.setdefault(replace(layer, name=pattern), []).append((index[1] if index else "", layer))
    lines = []
    for one, same in found.items():
        numbers = _ranges([int(index) for index, _ in same if index])
        lines.append(
            replace(
                one,
                name=one.name.replace("*", numbers),
                parameters=sum(layer.parameters for _, layer in same),
                flops=sum(layer.flops for _, layer in same),
                times=len(same),
            )
        )
    return lines


def _ranges(numbers: list[int]) -> str:
    """`0-3,5`: whole numbers in ascending order."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)


def _optimizers(model: PlannedModel) -> dict[str, str]:
    """A parameter's name in the decoder -> its optimizer's class and learning rate."""
    found: dict[str, str] = {}
    for slot in model.slots:
        group = slot.optimizer.param_groups[0]
        line = f"{type(slot.optimizer).__name__} {group.get('initial_lr', group['lr']):g}"
        found |= {name.removeprefix("decoder."): line for name in slot.names}
    return found


def _rank(projection: nn.Module) -> int | None:
    """Columns of its factors, where it states some."""
    for states in ("factor_pairs", "spectral_triples"):
        factors: Any = getattr(projection, states, list)()
        if factors:
            return int(factors[0][0].shape[1])
    return None


def _sizes(parameter: nn.Parameter | Any) -> str:
    return " × ".join(map(str, parameter.shape))
