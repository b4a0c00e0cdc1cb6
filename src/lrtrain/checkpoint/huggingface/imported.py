"""What a checkpoint remembers of the model that it was imported from, for its export."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml


@dataclass(frozen=True)
class Imported:
    """The record `imported` of a checkpoint that no step has changed yet.

    Attributes:
        source: The name of a folder or of a file, or a name on a hub.
        family: transformers' `model_type`.
        stored: Dtypes of the weights there, as `bfloat16` or `Q4_1, F32`.
        context: Tokens of the longest sequence that it was made for.
        license: As the source states it, if it does.
        ends: `bos_token_id`, `eos_token_id` and `pad_token_id` of its configuration; ids may be lists.
        stops: Tokens that end what it generates, as its generation configuration says.
        special: transformers' names of its tokenizer's special tokens to their text.
        chat_template: Of its conversations, if it has one.
        factorized: How its projections became factors and what that lost, in words; empty where they are dense.
        versions: Of the packages that read it.
    """

    source: str
    family: str
    stored: str
    context: int
    license: str | None = None
    ends: dict[str, Any] = field(default_factory=dict)
    special: dict[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    factorized: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    stops: list[int] = field(default_factory=list)

    def stop_tokens(self) -> list[int]:
        """`stops`; of a checkpoint that has not noted them, the end of its configuration."""
        end = self.ends.get("eos_token_id")
        return self.stops or (end if isinstance(end, list) else [] if end is None else [end])

    def record(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Ancestor:
    """The record `ancestor` of a checkpoint whose run began with an imported model, or with what came of one.

    Attributes: as those of `Imported`.
    """

    source: str
    family: str
    license: str | None


def license_in(card: str) -> str | None:
    """The license that the head of a model card states."""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    try:
        stated = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return None
    if not isinstance(stated, dict) or not isinstance(stated.get("license"), str):
        return None
    name = stated.get("license_name") if stated["license"] == "other" else None
    return str(name or stated["license"])
