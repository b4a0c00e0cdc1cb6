"""`lrtrain experiment`: the papers' figures and tables, trained, drawn, and judged against the claim."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrtrain.cli.arguments import Arguments
from lrtrain.config.recipes import folder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near

if TYPE_CHECKING:
    from lrtrain.studies.experiments.definition import Definition

FOLDER = folder("experiments")


def main(argv: list[str]) -> int:
    """Lists the experiments, plans them, or runs them one after the other; one that ends in an error ends no other."""
    parser = Arguments(
        prog="lrtrain experiment",
        description="Runs a paper's figure or table: trains what has not been trained yet, then prints the table and "
        "a verdict, and writes figure.png and results.json into <runs>/experiments/. Without a name it lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; none lists them")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--scale", default="tiny", help="tiny: minutes on two cores; paper: the published sizes [tiny]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs [runs]")
    parser.add_argument("--jobs", type=int, default=1, help="runs trained at a time [1]")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run [1]")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 … N − 1, but for isoflop [the file's]")
    parser.add_argument("--plan", action="store_true", help="print what each variant takes, and train nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the experiments' files [the shipped ones]")
    options = parser.parse_args(argv)
    for name in ("jobs", "threads", "seeds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give at least 1")

    from lrtrain.studies.experiments.definition import SCALES, load, names

    if options.scale not in SCALES:
        raise UserError(f"--scale {options.scale}: {near(options.scale, SCALES)}")
    known = names(options.folder)
    chosen = [load(options.folder, name, options.scale) for name in (known if options.all else options.names)]
    if not chosen:
        _list([load(options.folder, name, "tiny") for name in known])
        return 0
    if options.seeds is not None:
        chosen = [replace(one, scale=replace(one.scale, seeds=options.seeds)) for one in chosen]
    return _each(chosen, options)


def _each(chosen: "list[Definition]", options: Any) -> int:
    from lrtrain.studies.experiments.experiment_report import heading
    from lrtrain.studies.experiments.kinds import Effort, plan, run

    effort = Effort(options.runs, options.jobs, options.threads)
    verdicts, errors = [], []
    for index, definition in enumerate(chosen):
        print(("\n" if index else "") + heading(definition), flush=True)
        try:
            verdict = plan(definition) if options.plan else run(definition, effort)
        except UserError as error:
            if len(chosen) == 1:
                raise
            verdict = f"error: {error}"
            errors.append(definition.name)
            print(verdict, flush=True)
        verdicts.append(f"{definition.name}: {verdict}")
    if len(chosen) > 1 and not options.plan:
        print("\n" + "\n".join(verdicts))
    if errors:
        raise UserError(f"{len(errors)} of {len(chosen)} experiments ended with an error: {', '.join(errors)}")
    return 0


def _list(found: "list[Definition]") -> None:
    """A line an experiment; the sum counts a run that several experiments share once."""
    from lrtrain.runtime.table import table
    from lrtrain.studies.experiments.arm_runs import SEARCHED, minutes

    rows = [["experiment", "tiny", "claim"]]
    distinct: dict[str, float] = {}
    for one in found:
        own = {one.name: float(one.scale.besides)}
        for variant in one.variants:
            runs = one.scale.seeds + (SEARCHED - 1 if variant.search else 0)
            same = (variant.overlays, variant.settings, variant.equal_flops, one.scale.settings)
            own[str(same)] = minutes(runs, one.scale.seconds)
            if one.kind == "conversion":
                own[f"{same} kept"] = minutes(one.scale.seeds, one.scale.seconds)
        rows.append([one.name, f"{sum(own.values()):.0f} min", one.claim])
        distinct |= own
    total = sum(distinct.values())
    print(table(rows, numbers=False))
    print(f"\nall of them at tiny, shared runs once: about {total:.0f} minutes on two quiet cores with --jobs 2")
