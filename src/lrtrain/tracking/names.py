"""Names and values as MLflow takes them: legal keys, and a nested configuration as flat parameters."""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

NULL = "null"
"""The value of a parameter that is not set, as it is recorded; MLflow shows those that are."""

FIRST = ("train", "val", "test")
"""Sections of metrics that MLflow is to show above all others."""

MAX_NAME_LENGTH = 240  # MLflow takes 250; ten are left for the suffixes `/2` and `/part2`


def legal_name(name: str) -> str:
    """Returns `name` with what MLflow refuses replaced by `_`, normalized as a relative path, at most 240 long.

    MLflow takes letters and digits of any script, `_`, `-`, `.`, space and `/`; it refuses `a//b`, `/a` and `../a`.
    A longer name keeps its start and gets a hash of the whole, so that two long names stay two.
    """
    clean = posixpath.normpath(re.sub(r"[^\w.\- /]", "_", name)).lstrip("/")
    if clean in ("", ".") or clean.startswith(".."):
        clean = "_" + clean.replace("..", "_").lstrip(".")
    if len(clean) > MAX_NAME_LENGTH:
        clean = f"{clean[: MAX_NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return clean


def shown_name(metric: str) -> str:
    """A metric's name in MLflow, whose charts stand in the order of their names, capitals first: `Val/loss`."""
    section, slash, rest = metric.partition("/")
    return f"{section.capitalize()}/{rest}" if slash and section in FIRST else metric


def own_name(shown: str) -> str:
    """The name of a metric that MLflow shows: `val/loss` of `Val/loss`, and of `val/loss`, as it once was there."""
    section, slash, rest = shown.partition("/")
    return f"{section.lower()}/{rest}" if slash and section.lower() in FIRST else shown


def flatten(tree: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration as `{"model.init_args.lr": "0.01"}`: the dotted keys of the command line.

    Lists that hold mappings are numbered (`trainer.callbacks.0.class_path`); any other list, and an empty mapping, is
    one value in JSON. A string stays as it is; any other value is written as JSON (`true`, `null`, `[1, 2]`).
    """
    return dict(_leaves("", tree))


def joined(params: Mapping[str, str]) -> dict[str, str]:
    """Joins values that were split (`key/part2`) and keeps the last of `key`, `key/2`, …"""
    pieces: dict[str, dict[int, dict[int, str]]] = {}
    for key, value in params.items():
        name, version, part = re.fullmatch(r"(.*?)(?:/(\d+))?(?:/part(\d+))?", key, re.DOTALL).groups()  # type: ignore[union-attr]
        pieces.setdefault(name, {}).setdefault(int(version or 1), {})[int(part or 1)] = value
    return {
        name: "".join(text for _, text in sorted(versions[max(versions)].items())) for name, versions in pieces.items()
    }


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """The first key whose values differ, as `model.lr: 0.1 there, not set here`; None where none does."""
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            return f"{key}: {there.get(key, 'not set')} there, {here.get(key, 'not set')} here"
    return None


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not prefix):
        for key, child in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), child)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, child in enumerate(value):
            yield from _leaves(f"{prefix}.{index}", child)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
