"""What came of the variants of the kind `rates`: curves over the learning rate."""

from dataclasses import dataclass

from lrtrain.studies.experiments.rate_optimum import Movement, movement
from lrtrain.studies.experiments.sized_variants import Sized
from lrtrain.studies.experiments.variant_runs import VariantRuns
from lrtrain.studies.jobs.job import Outcome
from lrtrain.studies.jobs.rate_grid import losses_of

Curve = dict[float, list[Outcome]]
"""Learning rate -> what came of it, one a seed."""


@dataclass(frozen=True)
class Mapped:
    """A variant with the curve of each of its runs, by their name."""

    sized: Sized
    curves: dict[str, Curve]

    def losses(self, runs: VariantRuns) -> dict[float, float]:
        return losses_of(self.curves[runs.name])

    def movements(self) -> dict[str, Movement]:
        """Axis -> how the best learning rate moves over it."""
        center = self.losses(self.sized.center)
        return {
            name: movement([self.losses(runs) for runs in line.values()], center)
            for name, line in self.sized.lines.items()
        }
