"""Reading an experiment's file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrtrain.config.typed_file import complete, mapping, refused, stated, typed
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.experiments.definition import (
    KINDS,
    LOSS,
    About,
    Check,
    Definition,
    Drawing,
    Scale,
    Variant,
)

CHECKS = {"order": range(2, 99), "reaches": [2], "ratio": [2], "difference": [2], "bound": [1]}
"""Kind of check -> how many variants it takes."""


@dataclass(frozen=True)
class _Parts:
    """What a file holds beside `About` and what it says for all scales."""

    scales: dict[str, Any] = field(default_factory=lambda: {"": {}})
    variants: dict[str, Any] = field(default_factory=dict)
    figure: tuple[dict, ...] = ({"metric": LOSS},)
    checks: tuple[dict, ...] = ()


@dataclass(frozen=True)
class _Compared:
    """The kinds of checks, with the variants that one compares."""

    order: tuple[str, ...] = ()
    reaches: tuple[str, ...] = ()
    ratio: tuple[str, ...] = ()
    difference: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()


def names(folder: Path) -> list[str]:
    """The experiments that a folder holds. Raises UserError where there is none."""
    found = sorted(path.stem for path in folder.glob("*.yaml"))
    if not found:
        raise UserError(f"no experiments in {folder}: go to the project's folder, or name theirs with --folder")
    return found


def find(name: str, folder: Path) -> Path:
    """The file of an experiment: `<folder>/<name>.yaml`, or any that ends so. Raises UserError with near names."""
    if name.endswith(".yaml"):
        return Path(name)
    if name not in (known := names(folder)):
        raise UserError(f"no experiment {name!r} in {folder}: {near(name, known)}")
    return folder / f"{name}.yaml"


def load(file: Path, scale: str | None = None) -> Definition:
    """Reads an experiment at a scale, the file's first by default.

    What stands at the top, or in a variant, holds at every scale; what stands there under a scale is stronger, its
    overlays and settings come on top.

    Raises:
        UserError: a mistake in the file, with its key.
    """
    content = mapping(content_of(file), file)
    kind = content.get("kind", "training")
    if kind not in list(KINDS):
        raise refused(file, "", "kind", f"one of {', '.join(KINDS)}", kind)
    sizes, given = (Scale, KINDS[kind]), ("name", "options")
    top = stated((_Parts, About, *sizes), content, file, but=given)
    parts = complete(_Parts, top, file)
    name = next(iter(parts.scales), "") if scale is None else scale
    if name not in parts.scales:
        raise UserError(f"{file}: no scale {name}: there are {', '.join(filter(None, parts.scales)) or 'none'}")
    where = f"scales.{name}" if name else ""
    values = _stronger(top, stated(sizes, parts.scales[name], file, where, given))
    if not values.get("configs") and kind in ("training", "conversion"):
        raise refused(file, where, "configs", "a recipe", *([values["configs"]] if "configs" in values else []))
    if not parts.variants and kind in ("training", "conversion"):
        raise refused(file, "", "variants", "the variants to train", parts.variants)
    options: Any = complete(KINDS[kind], values, file, where)
    whole = {
        **{key: value for key, value in top.items() if key != "variants"},
        "name": file.stem,
        "scale": complete(Scale, {**values, "name": name, "options": options}, file, where),
        "variants": _variants(file, parts, name, values.get("search", True)),
        "figure": tuple(typed(Drawing, item, file, f"figure[{n}]") for n, item in enumerate(parts.figure)),
        "checks": tuple(
            _check(file, f"checks[{n}]", item, list(parts.variants)) for n, item in enumerate(parts.checks)
        ),
    }
    return complete(Definition, whole, file)


def _stronger(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What holds in general with what one scale states: its overlays after the others, its settings over them."""
    return {
        **values,
        **own,
        "overlays": (*values.get("overlays", ()), *own.get("overlays", ())),
        "settings": {**values.get("settings", {}), **own.get("settings", {})},
    }


def _variants(file: Path, parts: _Parts, scale: str, search: bool) -> tuple[Variant, ...]:
    found = []
    for name, content in parts.variants.items():
        where = f"variants.{name}"
        general = {key: value for key, value in mapping(content, file, where).items() if key not in parts.scales}
        values = {"label": name, "search": search, **stated((Variant,), general, file, where, ["name"], parts.scales)}
        if scale in content:
            where += f".{scale}"
            values = _stronger(values, stated((Variant,), content[scale], file, where, ["name"]))
        found.append(complete(Variant, {**values, "name": name}, file, where))
    labels = [variant.label for variant in found]
    if doubled := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"{file}: variants: two are labeled {doubled!r}: give each a label of its own")
    budgets = [variant.name for variant in found if not variant.equal_flops]
    for variant in found:
        if (other := variant.equal_flops) and other not in budgets:
            place = f"variants.{variant.name}.equal_flops"
            raise UserError(f"{file}: {place}: no variant {other!r} of own steps: {near(other, budgets)}")
    return tuple(found)


def _check(file: Path, where: str, content: Any, known: Sequence[str]) -> Check:
    values = stated((_Compared, Check), content, file, where, ("kind", "variants"))
    kinds = [kind for kind in CHECKS if kind in values]
    if len(kinds) != 1:
        raise UserError(f"{file}: {where}: give one of {', '.join(CHECKS)}")
    (kind,) = kinds
    compared = values[kind]
    if len(compared) not in CHECKS[kind]:
        many = {"bound": "one variant", "order": "two variants or more"}.get(kind, "two variants")
        raise refused(file, where, kind, many, list(compared))
    for name in compared:
        if name not in known:
            raise UserError(f"{file}: {where}.{kind}: no variant {name!r}: {near(name, known)}")
    between = values.get("between", (None, None))
    if kind in ("ratio", "difference", "bound") and between == (None, None):
        raise refused(file, where, "between", "a lower and an upper end, null for none")
    if kind in ("order", "reaches") and "between" in values:
        raise refused(file, where, "between", f"nothing beside {kind}", list(between))
    return complete(Check, {**values, "kind": kind, "variants": compared}, file, where)
