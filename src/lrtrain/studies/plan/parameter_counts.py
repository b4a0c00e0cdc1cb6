"""Parameters by kind, against the same decoder with dense projections."""

from dataclasses import dataclass

from torch import Tensor

from lrtrain.nn import Decoder, projections

KINDS = ("embedding", "head", "norms", "attention", "mlp")
OTHER = "other"
"""What a decoder of one's own has beside these."""


@dataclass(frozen=True)
class Kind:
    """A kind of parameters.

    Attributes:
        name: One of `KINDS`, or `OTHER`.
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
    count = dict.fromkeys((*KINDS, OTHER), 0)
    dense = dict.fromkeys((*KINDS, OTHER), 0)
    forms: dict[str, dict[str, None]] = {name: {} for name in count}
    inside: set[Tensor] = set()
    for name, projection in projections(decoder).items():
        kind = _kind(name)
        dense[kind] += projection.in_features * projection.out_features
        forms[kind][type(projection).__name__] = None
        inside |= set(projection.parameters())
    for name, parameter in decoder.named_parameters():
        kind = _kind(name)
        count[kind] += parameter.numel()
        if parameter not in inside:
            dense[kind] += parameter.numel()
    form = {name: ", ".join(forms[name]) or "dense" for name in count}
    if decoder.head is None:
        form["head"] = "tied"
    return [Kind(name, form[name], count[name], dense[name]) for name in count if name in KINDS or count[name]]


def _kind(name: str) -> str:
    parts = name.split(".")
    known = next((kind for kind in ("embedding", "head", "attention", "mlp") if kind in parts), None)
    return known or ("norms" if any("norm" in part for part in parts) else OTHER)


def spread(decoder: Decoder) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of one block, and those outside the blocks."""
    inside = set(decoder.blocks.parameters())
    return list(decoder.blocks[0].parameters()), [p for p in decoder.parameters() if p not in inside]
