"""Which format decodes faster, by the numbers that a token reads."""

from dataclasses import dataclass

from lrtrain.checkpoint.huggingface.llama_layout import factors
from lrtrain.nn import Decoder
from lrtrain.nn.projection import projections

WORTH_KEEPING = 0.8
"""Share of the merged model's numbers below which factors decode faster. Each number is read once a token and takes two
FLOPs for every row of a batch, so that the share is that of the time, at whatever batch size, but for what two smaller
products cost more than one (docs/results.md, inference)."""


@dataclass(frozen=True)
class Reads:
    """Numbers that a token reads, of all weights but the embedding, of which it reads a row: factorized, and merged."""

    factorized: int
    merged: int

    @property
    def share(self) -> float:
        return self.factorized / self.merged


def reads_of(decoder: Decoder) -> Reads:
    """Counts them."""
    kept = products = 0
    for one in projections(decoder).values():
        dense = one.in_features * one.out_features
        found = factors(one)
        products += dense
        kept += dense if found is None else sum(part.numel() for part in found[1].values())
    return Reads(kept + decoder.head_VD.numel(), products + decoder.head_VD.numel())


def advice(reads: Reads, keep_factors: bool) -> str | None:
    """A line on the format; None where nothing is factorized."""
    if reads.factorized == reads.merged:
        return None
    figures = f"a token reads {_millions(reads.factorized)} numbers factorized, {_millions(reads.merged)} merged"
    if reads.share < WORTH_KEEPING:
        if keep_factors:
            return f"factorized is the faster format: {figures}; vLLM and llama.cpp take merged alone"
        return f"--factorized would decode faster in transformers: {figures}; vLLM and llama.cpp take merged alone"
    if keep_factors:
        return f"merged would decode as fast or faster: {figures}, and factors pay below {WORTH_KEEPING:g} of that"
    return f"merged is the faster format: {figures}, and factors pay below {WORTH_KEEPING:g} of that"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M"
