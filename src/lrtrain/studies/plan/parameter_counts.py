"""Parameters by kind, against the same decoder with dense projections."""

from dataclasses import dataclass

from torch import Tensor

from lrtrain.nn import Decoder, Projection

KINDS = ("embedding", "head", "norms", "attention", "mlp")


@dataclass(frozen=True)
class Kind:
    """A kind of parameters.

    Attributes:
        name: One of `KINDS`.
        form: How its weights are written: the projections' classes, `dense` for what is no projection, `tied` for a
            head that is the embedding.
        parameters: Their number.
        dense: Their number with every projection dense.
    """

    name: str
    form: str
    parameters: int
    dense: int


def parameters_by_kind(decoder: Decoder) -> list[Kind]:
    """Every parameter of a decoder, on any device, counted under one kind."""
    count = dict.fromkeys(KINDS, 0)
    dense = dict.fromkeys(KINDS, 0)
    forms: dict[str, dict[str, None]] = {name: {} for name in KINDS}
    projections = {name: m for name, m in decoder.named_modules() if isinstance(m, Projection)}
    for name, projection in projections.items():
        kind = _kind(name)
        dense[kind] += projection.in_features * projection.out_features
        forms[kind][type(projection).__name__] = None
    for name, parameter in decoder.named_parameters():
        owner = name.rpartition(".")[0]
        kind = _kind(name)
        if owner not in projections:
            dense[kind] += parameter.numel()
        count[kind] += parameter.numel()
    form = {name: ", ".join(forms[name]) or "dense" for name in KINDS}
    if decoder.head is None:
        form["head"] = "tied"
    return [Kind(name, form[name], count[name], dense[name]) for name in KINDS]


def _kind(name: str) -> str:
    parts = name.split(".")
    return next((kind for kind in ("embedding", "head", "attention", "mlp") if kind in parts), "norms")


def spread(decoder: Decoder) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of one block, and those outside the blocks."""
    inside = set(decoder.blocks.parameters())
    return list(decoder.blocks[0].parameters()), [p for p in decoder.parameters() if p not in inside]
