"""What an experiment's file says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.experiments.fields import Fields

SCALES = ("tiny", "paper")
KINDS: dict[str, tuple[str, ...]] = {
    "training": (),
    "isoflop": ("grid",),
    "memory": ("measure",),
    "conversion": ("ranks", "energies", "steps", "lr"),
}
"""Kind of experiment -> what a scale of it says beside the rest."""

CHECKS = ("order", "reaches", "ratio", "difference", "bound")
STATISTICS = ("last", "mean", "max", "rise")
AXES = ("steps", "tokens", "flops", "time", "x")
LOSS = "val/loss"


@dataclass(frozen=True)
class Variant:
    """One line of an experiment, at one scale.

    Attributes:
        name: In the file, by which checks name it.
        label: In tables and figures.
        overlays: YAML files on top of the scale's recipe.
        settings: By dotted key, stronger than the files; `lr` and `lr * 0.04` as a value anywhere inside stand for the
            learning rate that is tried. Without either it is that of the projections.
        lr: First learning rate of the search, or the only one.
        search: Whether the learning rate is searched.
        x: Where a figure over x has the variant.
        published: The paper's figure for it, as text.
        equal_flops: The variant whose training FLOPs it gets; it takes as many steps as they pay.
    """

    name: str
    label: str
    overlays: tuple[Path, ...]
    settings: dict[str, Any]
    lr: float
    search: bool
    x: float | None
    published: str
    equal_flops: str


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run.

    Attributes:
        name: `tiny` or `paper`.
        configs: A recipe, on which the variants' overlays go.
        overlays: On top of those.
        settings: Of all variants, by dotted key; a variant's are stronger.
        seeds: How many, 0 … seeds − 1.
        telemetry: Steps between two measurements of norms; 0 leaves the recipe's.
        seconds: Of one run after its start, on one quiet core, for the estimate of time; 0 where nobody measured.
        besides: Minutes beside the runs, for the same.
        differs: What makes the runs another experiment than the paper's; the verdict then is `not comparable`.
        options: What `KINDS` names.
    """

    name: str
    configs: tuple[Path, ...]
    overlays: tuple[Path, ...]
    settings: dict[str, Any]
    seeds: int
    telemetry: int
    seconds: int
    besides: int
    differs: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """One picture: a metric, or a pattern of telemetry (`spectral/*/update_norm`), over an axis."""

    metric: str
    over: str
    logarithmic: bool


@dataclass(frozen=True)
class Check:
    """One condition of the claim: see `verdict`. `ours` ones go beyond the paper and do not count."""

    kind: str
    variants: tuple[str, ...]
    metric: str
    statistic: str
    low: float | None
    high: float | None
    ours: bool


@dataclass(frozen=True)
class Definition:
    """An experiment at one scale; `published` is a table of the paper, where the kind computes one."""

    name: str
    kind: str
    title: str
    claim: str
    source: str
    scale: Scale
    variants: tuple[Variant, ...]
    xlabel: str
    figure: tuple[Drawing, ...]
    checks: tuple[Check, ...]
    published: dict[str, Any]


def names(folder: Path) -> list[str]:
    """The experiments that a folder holds. Raises UserError where there is none."""
    found = sorted(path.stem for path in folder.glob("*.yaml"))
    if not found:
        raise UserError(f"no experiments in {folder}: go to the project's folder, or name theirs with --folder")
    return found


def load(folder: Path, name: str, scale: str) -> Definition:
    """Reads `<folder>/<name>.yaml` at a scale. Raises UserError, with near names or the key, for a mistake."""
    if name not in (known := names(folder)):
        raise UserError(f"no experiment {name!r} in {folder}: {near(name, known)}")
    file = folder / f"{name}.yaml"
    top = Fields(file, content_of(file), (*Definition.__dataclass_fields__, *("scales",)))
    kind = top.choice("kind", tuple(KINDS), "training")
    scales = Fields(file, top.content.get("scales"), SCALES, "scales")
    if scale not in scales.content:
        raise UserError(f"{file}: no scale {scale}: there are {', '.join(scales.content)}")
    variants = tuple(_variant(file, key, value, scale) for key, value in top.mapping("variants").items())
    if kind in ("training", "conversion") and not variants:
        raise top.refuse("variants", "the variants to train")
    known_variants = [variant.name for variant in variants]
    budgets = [variant.name for variant in variants if not variant.equal_flops]
    for variant in variants:
        if variant.equal_flops and variant.equal_flops not in budgets:
            place = f"{file}: variants.{variant.name}.{scale}.equal_flops"
            raise UserError(
                f"{place}: no variant {variant.equal_flops!r} of own steps: {near(variant.equal_flops, budgets)}"
            )
    return Definition(
        name=name,
        kind=kind,
        title=top.text("title"),
        claim=top.text("claim"),
        source=top.text("source"),
        scale=_scale(file, kind, scale, scales.content[scale]),
        variants=variants,
        xlabel=top.text("xlabel", ""),
        figure=tuple(_panel(file, n, item) for n, item in enumerate(top.items("figure", dict, "a panel"))),
        checks=tuple(
            _check(file, n, item, known_variants) for n, item in enumerate(top.items("checks", dict, "a check"))
        ),
        published=top.mapping("published"),
    )


def _scale(file: Path, kind: str, name: str, content: Any) -> Scale:
    own = ("configs", "overlays", "settings", "seeds", "telemetry", "seconds", "besides", "differs", *KINDS[kind])
    fields = Fields(file, content, own, f"scales.{name}")
    configs = fields.files("configs")
    if not configs and kind in ("training", "conversion"):
        raise fields.refuse("configs", "a recipe")
    options = {key: fields.content[key] for key in KINDS[kind] if key in fields.content}
    for key in KINDS[kind]:
        if key not in options:
            raise fields.refuse(key, "a value")
    if kind == "isoflop":
        options["grid"] = Fields(file, {"grid": [options["grid"]]}, ("grid",), f"scales.{name}").files("grid")[0]
    return Scale(
        name=name,
        configs=configs,
        overlays=fields.files("overlays"),
        settings=fields.mapping("settings"),
        seeds=fields.whole("seeds", 3, least=1),
        telemetry=fields.whole("telemetry", 0),
        seconds=fields.whole("seconds", 0),
        besides=fields.whole("besides", 0),
        differs=fields.text("differs", ""),
        options=options,
    )


def _variant(file: Path, name: str, content: Any, scale: str) -> Variant:
    where = f"variants.{name}"
    fields = Fields(file, content, ("label", "overlays", "settings", "published", *SCALES), where)
    if scale not in fields.content:
        raise fields.refuse(scale, f"what the variant is at the scale {scale}, lr at least")
    known = ("label", "overlays", "settings", "lr", "search", "x", "equal_flops")
    own = Fields(file, fields.content[scale], known, f"{where}.{scale}")
    return Variant(
        name=name,
        label=own.text("label", fields.text("label", name)),
        overlays=(*fields.files("overlays"), *own.files("overlays")),
        settings={**fields.mapping("settings"), **own.mapping("settings")},
        lr=own.number("lr"),
        search=own.flag("search", True),
        x=own.number("x") if "x" in own.content else None,
        published=str(fields.content.get("published", "")),
        equal_flops=own.text("equal_flops", ""),
    )


def _panel(file: Path, number: int, content: Any) -> Drawing:
    fields = Fields(file, content, ("metric", "over", "logarithmic"), f"figure[{number}]")
    return Drawing(fields.text("metric"), fields.choice("over", AXES, "steps"), fields.flag("logarithmic", False))


def _check(file: Path, number: int, content: Any, variants: list[str]) -> Check:
    fields = Fields(file, content, (*CHECKS, "metric", "statistic", "between", "ours"), f"checks[{number}]")
    kinds = [kind for kind in CHECKS if kind in fields.content]
    if len(kinds) != 1:
        raise UserError(f"{file}: checks[{number}]: give one of {', '.join(CHECKS)}")
    kind = kinds[0]
    compared = fields.items(kind, str, "a variant")
    wanted = {"bound": range(1, 2), "order": range(2, 99)}.get(kind, range(2, 3))
    if len(compared) not in wanted:
        raise fields.refuse(kind, {"bound": "one variant", "order": "two variants or more"}.get(kind, "two variants"))
    for name in compared:
        if name not in variants:
            raise UserError(f"{file}: {fields.path(kind)}: no variant {name!r}: {near(name, variants)}")
    low, high = None, None
    if kind in ("ratio", "difference", "bound"):
        ends = fields.items("between", (int, float, type(None)), "a number or null")
        if len(ends) != 2 or ends == [None, None]:
            raise fields.refuse("between", "a lower and an upper end, null for none")
        low, high = ends
    elif "between" in fields.content:
        raise fields.refuse("between", f"nothing beside {kind}")
    return Check(
        kind=kind,
        variants=tuple(compared),
        metric=fields.text("metric", LOSS),
        statistic=fields.choice("statistic", STATISTICS, "last"),
        low=low,
        high=high,
        ours=fields.flag("ours", False),
    )
