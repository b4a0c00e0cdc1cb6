"""The experiment that is a scaling law: the grid of a file, trained and fitted as `lrtrain scaling` does it."""

from functools import partial

from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.experiment_report import Effort, Result
from lrtrain.studies.scaling.fit_report import fit_laws
from lrtrain.studies.scaling.grid import points_table
from lrtrain.studies.scaling.planned_grid import plan_grid
from lrtrain.studies.scaling.point_runs import train_grid


def plan(definition: Definition) -> str:
    """The points of the grid, as a table. Raises UserError for what the grid or `lrtrain fit` would refuse."""
    return points_table(plan_grid(definition.scale.options.grid, definition.name).points)


def run(definition: Definition, effort: Effort) -> Result:
    """Trains the grid and fits its laws. Raises UserError where a run fails or the points tell no law."""
    grid, say = plan_grid(definition.scale.options.grid, effort.folder.resolve().name), partial(print, flush=True)
    grid.save(effort.folder)
    say(points_table(grid.points))
    train_grid(effort.folder, effort, say)
    fit = fit_laws(effort.folder, say)
    return Result("", fit["verdict"], {"fit": fit})
