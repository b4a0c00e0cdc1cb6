"""Reading an experiment's file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.config.typed_file import complete, mapping, refused, stated
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.experiments.definition import (
    CHECKS,
    KINDS,
    LOSS,
    TRAINED,
    Check,
    Definition,
    Drawing,
    Scale,
    Variant,
)

SHARED = ("search", "factors")
"""What a variant has as its scale does, unless it says another."""


@dataclass(frozen=True)
class _Tables:
    """What a file holds for each scale and each variant."""

    scales: dict[str, Any]
    variants: dict[str, Any]


def load(file: Path, scale: str | None = None) -> Definition:
    """Reads an experiment at a scale, the file's first by default.

    What stands at the top, or in a variant, holds at every scale; what stands there under a scale is stronger, its
    overlays and settings come on top. A variant with null under a scale is none of that scale, nor are checks of it.

    Raises:
        UserError: a mistake in the file, with its key.
    """
    content = mapping(content_of(file), file)
    kind = content.get("kind", "training")
    if kind not in list(KINDS):
        raise refused(file, "", "kind", f"one of {', '.join(KINDS)}", kind)
    sizes = (Scale, KINDS[kind])
    top = stated((Definition, *sizes, _Tables), content, file, but=("name", "scale", "options"))
    scales, variants = top.get("scales", {"": {}}), top.pop("variants", {})
    name = next(iter(scales), "") if scale is None else scale
    if name not in scales:
        raise UserError(f"{file}: no scale {name}: there are {', '.join(filter(None, scales)) or 'none'}")
    where = f"scales.{name}" if name else ""
    values = _stronger(top, stated(sizes, scales[name], file, where, ("name", "options")))
    if kind in TRAINED:
        if not values.get("configs"):
            raise refused(file, where, "configs", "a recipe", *([values["configs"]] if "configs" in values else []))
        if not variants:
            raise refused(file, "", "variants", "the variants to train", variants)
    for number, check in enumerate(top.get("checks", ())):
        _sound(check, content["checks"][number], file, f"checks[{number}]", variants)
    size = {**values, "name": name, "options": complete(KINDS[kind], values, file, where)}
    chosen = _variants(file, scales, variants, name, {key: values[key] for key in SHARED if key in values})
    own = {
        "name": file.stem,
        "scale": complete(Scale, size, file, where),
        "variants": chosen,
    }
    if kind == "rates":
        top.setdefault("figure", (Drawing(LOSS, "lr"),))
    present = {variant.name for variant in chosen}
    top["checks"] = tuple(check for check in top.get("checks", ()) if present.issuperset(check.variants))
    found = complete(Definition, {**top, **own}, file)
    _sound_kind(found, file)
    return found


def _stronger(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What holds in general with what one scale states: its overlays after the others, its settings over them."""
    return {
        **values,
        **own,
        "overlays": (*values.get("overlays", ()), *own.get("overlays", ())),
        "settings": {**values.get("settings", {}), **own.get("settings", {})},
    }


def _variants(
    file: Path, scales: Iterable[str], variants: Mapping[str, Any], scale: str, shared: Mapping[str, Any]
) -> tuple[Variant, ...]:
    found = []
    for name, content in variants.items():
        where = f"variants.{name}"
        general = {key: value for key, value in mapping(content, file, where).items() if key not in scales}
        values = {"label": name, **shared, **stated((Variant,), general, file, where, ["name"], scales)}
        if scale in content:
            if content[scale] is None:
                continue
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


def _sound(check: Check, content: Mapping[str, Any], file: Path, where: str, known: Iterable[str]) -> None:
    """Raises UserError for a check that is none of one kind, or whose variants or ends are not what its kind takes."""
    kinds = [kind for kind in CHECKS if kind in content]
    if len(kinds) != 1:
        raise UserError(f"{file}: {where}: give one of {', '.join(CHECKS)}")
    (kind,) = kinds
    compared = getattr(check, kind)
    if len(compared) not in CHECKS[kind] or len(set(compared)) < len(compared):
        many = {"bound": "one variant", "order": "two variants or more"}.get(kind, "two variants")
        raise refused(file, where, kind, many, list(compared))
    for name in compared:
        if name not in known:
            raise UserError(f"{file}: {where}.{kind}: no variant {name!r}: {near(name, known)}")
    if kind in ("ratio", "difference", "bound") and check.between == (None, None):
        raise refused(file, where, "between", "a lower and an upper end, null for none")
    if kind in ("order", "reaches") and "between" in content:
        raise refused(file, where, "between", f"nothing beside {kind}", list(check.between))


def _sound_kind(definition: Definition, file: Path) -> None:
    """Raises UserError for factors without 1, and for what the kind `rates` alone takes, or alone does not."""
    for place, factors in [("factors", definition.scale.factors)] + [
        (f"variants.{variant.name}.factors", variant.factors) for variant in definition.variants
    ]:
        if factors and (1 not in factors or len(set(factors)) < len(factors)):
            raise refused(file, "", place, "factors that differ, 1 among them", list(factors))
    for number, drawing in enumerate(definition.figure):
        if (drawing.over == "lr") != (definition.kind == "rates"):
            wanted = "lr" if definition.kind == "rates" else "another than lr, which kind: rates draws"
            raise refused(file, f"figure[{number}]", "over", wanted, drawing.over)
        if drawing.statistic != "last" and drawing.over not in ("x", "lr"):
            raise refused(file, f"figure[{number}]", "statistic", "last, for a curve", drawing.statistic)
    if definition.kind != "rates":
        if beside := next((variant.name for variant in definition.variants if variant.without), None):
            raise refused(file, f"variants.{beside}", "without", "nothing beside kind: rates")
        return
    axes = {axis.name: axis for axis in definition.scale.options.axes}
    for axis in axes.values():
        if axis.at not in axis.sizes or len(set(axis.sizes)) < len(axis.sizes):
            raise UserError(f"{file}: axes: {axis.name}: give sizes that differ, and one of them as at")
    if definition.checks:
        raise refused(file, "", "checks", "nothing beside kind: rates", "checks")
    for variant in definition.variants:
        if variant.equal_flops:
            place = f"variants.{variant.name}"
            raise refused(file, place, "equal_flops", "nothing beside kind: rates", variant.equal_flops)
        for name in variant.without:
            if name not in axes:
                raise UserError(f"{file}: variants.{variant.name}.without: no axis {name!r}: {near(name, axes)}")
        if not variant.factors and variant.search:
            raise UserError(f"{file}: factors: kind: rates needs factors of the variants' lr, such as [0.5, 1, 2]")
