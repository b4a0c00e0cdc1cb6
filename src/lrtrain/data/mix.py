"""Several prepared data sets by weight (`data.mix`): what a configuration names, and what it comes to."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from lrtrain.data.manifest import SPLITS, Manifest
from lrtrain.runtime.errors import UserError

ONE_TOKENIZER = ("tokenizer_sha256", "vocab_size", "eot_id", "dtype")


@dataclass
class Weighted:
    """A data set of a mix.

    Args:
        path: Its folder, or the URL of one.
        weight: Its share of the training blocks, as a number relative to the others' (0.7 and 0.3 as 70 and 30).
        name: What metrics call it (`val/<name>/loss`); null is the last part of the path.
    """

    path: str
    weight: float
    name: str | None = None


class Source(NamedTuple):
    """A data set that blocks come from; `share` is its part of them, and a data set that stands alone has no name."""

    name: str
    path: str
    share: Fraction
    manifest: Manifest


@dataclass(frozen=True)
class MixManifest:
    """What the manifests of a mix have in common, and each source's share and splits under its name."""

    tokenizer_sha256: str
    vocab_size: int
    eot_id: int
    dtype: str
    train: dict[str, dict[str, Any]]
    val: dict[str, dict[str, Any]]
    sources: list[dict[str, Any]]

    @classmethod
    def of(cls, sources: Sequence[Source]) -> "MixManifest":
        """The manifest of `sources`. Raises UserError unless all have one tokenizer and each shards of its own."""
        first = sources[0]
        for source in sources[1:]:
            for key in ONE_TOKENIZER:
                one, other = getattr(first.manifest, key), getattr(source.manifest, key)
                if one != other:
                    what = (
                        ("the tokenizer", one[:8], other[:8]) if key == ONE_TOKENIZER[0] else (f"the {key}", one, other)
                    )
                    raise UserError(
                        f"data.mix: {first.path} has {what[0]} {what[1]} and {source.path} {what[2]}: prepare all with "
                        f"one tokenizer, as with --tokenizer {first.path}/tokenizer.json"
                    )
        digests = [source.manifest.train.digest for source in sources]
        for source, digest in zip(sources, digests, strict=True):
            if sources[digests.index(digest)] is not source:
                same = sources[digests.index(digest)].path
                raise UserError(f"data.mix: {same} and {source.path} hold the same shards: name them once")
        train, val = (
            {s.name: {"weight": float(s.share), **asdict(s.manifest.split(name))} for s in sources} for name in SPLITS
        )
        described = [{"name": s.name, "path": s.path, **asdict(s.manifest)} for s in sources]
        return cls(
            **{key: getattr(first.manifest, key) for key in ONE_TOKENIZER}, train=train, val=val, sources=described
        )


def check_mix(mix: Sequence[Weighted]) -> list[tuple[str, str, Fraction]]:
    """Name, path and share of each data set of a mix. Raises UserError for what cannot be meant."""
    if not mix:
        raise UserError("data.mix is empty: give a list of {path: FOLDER, weight: NUMBER}, or data.path")
    for number, one in enumerate(mix):
        if not math.isfinite(one.weight) or one.weight <= 0:
            raise UserError(
                f"data.mix[{number}].weight ({one.path}) is {one.weight}: give a number above 0, or leave it out"
            )
    paths = [one.path.rstrip("/") for one in mix]
    if doubled := [path for path, times in Counter(paths).items() if times > 1]:
        raise UserError(
            f"data.mix names {doubled[0]} {paths.count(doubled[0])} times: name it once, with its whole weight"
        )
    names = [path.rpartition("/")[2] if one.name is None else one.name for path, one in zip(paths, mix, strict=True)]
    for number, name in enumerate(names):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
            raise UserError(
                f"data.mix[{number}].name is {name!r}: metrics have it in their names; give letters, digits, - _ ."
            )
        if names.count(name) > 1:
            raise UserError(
                f"data.mix has {name} twice, as metrics would name them: give each a name of its own (name: …)"
            )
    weights = [Fraction(str(one.weight)) for one in mix]
    return [(name, path, weight / sum(weights)) for name, path, weight in zip(names, paths, weights, strict=True)]


def bytes_per_token(sources: Sequence[Source], split: str) -> float:
    """UTF-8 bytes per token: the sources' mean by their shares, which are shares of tokens."""
    total = sum(source.share for source in sources)
    return sum(float(source.share / total) * source.manifest.bytes_per_token(split) for source in sources)


def described(sources: Sequence[Source], block: int, blocks: float | None) -> str:
    """What a mix is, in a line, and how often each source is read in a run of so many blocks, if that is known."""
    parts = []
    for source in sources:
        passes = ""
        if blocks:
            times = float(source.share) * blocks / source.manifest.train.blocks(block)
            passes = f", read {times:.2f} times in this run"
        parts.append(f"{source.name} {float(source.share):.1%} ({source.manifest.train.tokens:,} tokens{passes})")
    return f"data.mix: {'; '.join(parts)}"
