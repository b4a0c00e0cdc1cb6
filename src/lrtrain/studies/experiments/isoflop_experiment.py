"""The experiment that is a scaling law: the grid of a file, trained and fitted as `lrtrain scaling` does it."""

from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.result import Effort, Result
from lrtrain.studies.scaling.grid import points_table
from lrtrain.studies.scaling.stages import fit_laws, plan_grid, train_grid


def plan(definition: Definition) -> str:
    """The points of the grid, as a table. Raises UserError for what the grid or `lrtrain fit` would refuse."""
    return points_table(plan_grid(definition.scale.options.grid, definition.name).points)


def run(definition: Definition, effort: Effort) -> Result:
    """Trains the grid and fits its laws. Raises UserError where a run fails or the points tell no law."""
    grid = plan_grid(definition.scale.options.grid, effort.folder.resolve().name)
    grid.save(effort.folder)
    print(points_table(grid.points), flush=True)
    train_grid(effort.folder, effort.runs, effort.jobs, effort.threads, _say)
    fit = fit_laws(effort.folder, _say)
    return Result("", fit["verdict"], {"fit": fit})


def _say(line: str) -> None:
    print(line, flush=True)
