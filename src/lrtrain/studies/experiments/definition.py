"""What an experiment's file says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lrtrain.config.typed_file import Count, Index, Positive, Share

LOSS = "val/loss"

Statistic: TypeAlias = Literal["last", "mean", "max", "rise"]


@dataclass(frozen=True)
class Variant:
    """One line of an experiment, at one scale.

    Attributes:
        name: In the file, by which checks name it.
        label: In tables and figures; in the file the name by default.
        overlays: YAML files on top of the scale's recipe.
        settings: By dotted key, stronger than the files; `lr` and `lr * 0.04` as a value anywhere inside stand for the
            learning rate that is tried. Without either it is that of the projections.
        lr: First learning rate of the search, or the only one.
        search: Whether the learning rate is searched.
        factors: Of its first learning rate, which its search tries; by default the scale's.
        without: Axes of the kind `rates` that it has no setting for, and does not vary over.
        x: Where a figure over x has the variant.
        published: A published figure for it, as text.
        equal_flops: The variant whose training FLOPs it gets; it takes as many steps as they pay.
    """

    name: str
    lr: Positive
    label: str = ""
    overlays: tuple[Path, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    search: bool = True
    factors: tuple[Positive, ...] = ()
    without: tuple[str, ...] = ()
    x: float | None = None
    published: str = ""
    equal_flops: str = ""


@dataclass(frozen=True)
class Training:
    """What an experiment of the usual kind says beside the rest: nothing."""


@dataclass(frozen=True)
class IsoFlop:
    """A scaling law.

    Attributes:
        grid: A grid file of `lrtrain scaling`.
    """

    grid: Path


@dataclass(frozen=True)
class Memory:
    """A table of what matrices take.

    Attributes:
        measure: The most of a dense matrix that is measured.
    """

    measure: Positive


@dataclass(frozen=True)
class Conversion:
    """A dense model that is converted and fine-tuned.

    Attributes:
        ranks: To convert to.
        energies: Shares of Σσ² to convert to.
        steps: Of the fine-tuning.
        lr: The first learning rate of its search.
        pretrained: Whether the dense model is the checkpoint with which the recipe begins (`init_from`), as
            `lrtrain import` makes one; else it is trained here.
    """

    ranks: tuple[Count, ...]
    energies: tuple[Share, ...]
    steps: Count
    lr: Positive
    pretrained: bool = False


@dataclass(frozen=True)
class Axis:
    """One way in which a model is made smaller and larger.

    Attributes:
        name: In tables and figures.
        sizes: Its values.
        at: The one of them that it has while another axis varies.
        settings: By dotted key; `size`, `size * 3` and `size / 32` as a value anywhere inside stand for the size.
    """

    name: str
    sizes: tuple[Positive, ...]
    at: Positive
    settings: dict[str, Any]


@dataclass(frozen=True)
class Rates:
    """Variants over their learning rates, and over the sizes of a model.

    Attributes:
        axes: Each varies alone; without any each variant has one size.
        first_seed: Seeds are this one and those after it: a search is to have others than what is reported.
    """

    axes: tuple[Axis, ...] = ()
    first_seed: Index = 0


KINDS: dict[str, type] = {
    "training": Training,
    "rates": Rates,
    "isoflop": IsoFlop,
    "memory": Memory,
    "conversion": Conversion,
}
TRAINED = ("training", "rates", "conversion")
"""Kinds whose variants are runs on top of a recipe."""


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run.

    Attributes:
        name: In the file; empty where it has one scale alone.
        options: What the kind of the experiment takes.
        configs: A recipe, on which the variants' overlays go.
        overlays: On top of those.
        settings: Of all variants, by dotted key; a variant's are stronger.
        search: Whether learning rates are searched, where the variant does not say.
        factors: Of a variant's first learning rate, all of which a search tries, 1 among them. Without any it goes on
            by factors of two until the best is not at an end.
        seeds: How many, 0 … seeds − 1.
        telemetry: Steps between two measurements of norms; 0 leaves the recipe's.
        seconds: Of one run after its start, on one quiet core, for the estimate of time; 0 where nobody measured.
        besides: Minutes beside the runs, for the same.
        differs: What makes the runs another experiment than the paper's; the verdict then is `not comparable`.
    """

    name: str
    options: Any
    configs: tuple[Path, ...] = ()
    overlays: tuple[Path, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    search: bool = True
    factors: tuple[Positive, ...] = ()
    seeds: Count = 3
    telemetry: Index = 0
    seconds: Index = 0
    besides: Index = 0
    differs: str = ""


@dataclass(frozen=True)
class Drawing:
    """One picture.

    Attributes:
        metric: A metric, or a pattern of telemetry (`spectral/*/update_norm`).
        over: The axis; `x` is that of the variants, `lr`, which the kind `rates` alone draws, that of the runs. Over
            both each run is a point: the statistic of its metric.
        logarithmic: Whether the metric's axis is.
        statistic: Of a run's values of the metric, where it is a point; `rise` is the last one less the lowest.
    """

    metric: str
    over: Literal["steps", "tokens", "flops", "time", "x", "lr"] = "steps"
    logarithmic: bool = False
    statistic: Statistic = "last"


CHECKS = {"order": range(2, 99), "reaches": [2], "ratio": [2], "difference": [2], "bound": [1]}
"""Kind of check -> how many variants it takes."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One condition of the claim: the variants under one of its kinds, which `verdict` says more of.

    Attributes:
        order: Each mean lies below the next one's (Welch's t-test, p < 0.05).
        reaches: The first mean does not lie above the second by that test.
        ratio: The mean over seeds of the first over the second lies in `between`.
        difference: The mean over seeds of the first less the second does.
        bound: Every run's value does.
        metric: What is compared.
        statistic: Of a run's values of it; `rise` is the last one less the lowest.
        between: The lower and the upper end, null for none.
        ours: Whether it goes beyond the paper, and counts for no verdict.
    """

    order: tuple[str, ...] = ()
    reaches: tuple[str, ...] = ()
    ratio: tuple[str, ...] = ()
    difference: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    metric: str = LOSS
    statistic: Statistic = "last"
    between: tuple[float | None, float | None] = (None, None)
    ours: bool = False

    @property
    def kind(self) -> str:
        return next(kind for kind in CHECKS if getattr(self, kind))

    @property
    def variants(self) -> tuple[str, ...]:
        found: tuple[str, ...] = getattr(self, self.kind)
        return found


@dataclass(frozen=True, kw_only=True)
class Definition:
    """An experiment at one scale. One of a user's own has neither the claim of a paper nor its source.

    Attributes:
        name: The file's, without its ending.
        scale: How large it is run; in the file, what of `Scale` stands at the top or under one of the `scales`.
        variants: What is compared; in the file by name.
        kind: What is done: variants trained, an isoFLOP grid, matrices measured, or a dense model converted.
        title: In a line.
        claim: What the paper says.
        source: The paper and its figure.
        xlabel: Of an axis x.
        published: A table of the paper, where the kind computes one.
        figure: The pictures.
        checks: The conditions of the claim; without any, the verdict is the variants by their means, with p values.
    """

    name: str
    scale: Scale
    variants: tuple[Variant, ...]
    kind: Literal["training", "rates", "isoflop", "memory", "conversion"] = "training"
    title: str = ""
    claim: str = ""
    source: str = ""
    xlabel: str = "x"
    published: dict[str, Any] = field(default_factory=dict)
    figure: tuple[Drawing, ...] = (Drawing(LOSS),)
    checks: tuple[Check, ...] = ()

    @property
    def claimed(self) -> str:
        """Whose figures the checks hold its own against."""
        return "the paper's" if self.source else "expected"

    @property
    def place(self) -> str:
        """The name of its folder: its own, and the scale's if that has one."""
        return f"{self.name}-{self.scale.name}" if self.scale.name else self.name
