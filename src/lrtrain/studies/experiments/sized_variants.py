"""The variants of an experiment at several sizes: one axis varies, the others stay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrtrain.studies.experiments.definition import Axis, Definition, Variant
from lrtrain.studies.experiments.variant_runs import VariantRuns, variant_runs, with_size


@dataclass(frozen=True)
class Sized:
    """A variant's runs: where no axis varies, and over each axis that it has, by size."""

    variant: Variant
    center: VariantRuns
    lines: dict[str, dict[float, VariantRuns]]

    @property
    def all(self) -> list[VariantRuns]:
        """Each once, the center first."""
        runs = [self.center, *(one for line in self.lines.values() for one in line.values())]
        return list({one.name: one for one in runs}.values())


def sized_variants(definition: Definition) -> list[Sized]:
    """Every variant at every size that it has.

    Raises:
        UserError: as of `variant_runs`.
    """
    wanted: dict[tuple[str, tuple[float, ...]], Variant] = {}
    for variant in definition.variants:
        axes = _own(variant, definition)
        for sizes in [_sizes(axes), *(_sizes(axes, axis, size) for axis in axes for size in axis.sizes)]:
            wanted[variant.name, sizes] = _at(variant, axes, sizes)
    expanded = replace(definition, variants=tuple(wanted.values()))
    runs = dict(zip(wanted, variant_runs(expanded), strict=True))
    found = []
    for variant in definition.variants:
        axes = _own(variant, definition)
        lines = {
            axis.name: {size: runs[variant.name, _sizes(axes, axis, size)] for size in sorted(axis.sizes)}
            for axis in axes
        }
        found.append(Sized(variant, runs[variant.name, _sizes(axes)], lines))
    return found


def _own(variant: Variant, definition: Definition) -> list[Axis]:
    return [axis for axis in definition.scale.options.axes if axis.name not in variant.without]


def _sizes(axes: Sequence[Axis], varied: Axis | None = None, size: float = 0.0) -> tuple[float, ...]:
    """The size on each axis where one of them has another than its own."""
    return tuple(size if axis is varied else axis.at for axis in axes)


def _at(variant: Variant, axes: Sequence[Axis], sizes: Sequence[float]) -> Variant:
    settings: dict[str, Any] = {}
    for axis, size in zip(axes, sizes, strict=True):
        settings |= with_size(axis.settings, size)
    moved = [f"{axis.name} {size:g}" for axis, size in zip(axes, sizes, strict=True) if size != axis.at]
    return replace(
        variant,
        name=" ".join([variant.name, *moved]),
        label=", ".join([variant.label, *moved]),
        settings={**settings, **variant.settings},
    )
