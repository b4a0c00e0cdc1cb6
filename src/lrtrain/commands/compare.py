"""`lrtrain compare`: loss curves of tracked runs as a picture, and their mean final losses as a table."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrtrain.commands.arguments import Arguments
from lrtrain.errors import UserError

Curve = list[tuple[int, float]]

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def main(argv: list[str]) -> int:
    """Draws one line for each name: the mean over its finished runs, and their range."""
    parser = Arguments(
        prog="lrtrain compare", description="Compares tracked runs by name; the runs of a name count as repetitions."
    )
    parser.add_argument("names", nargs="+", help="names of runs (--name of lrtrain fit), or NAME=LABEL")
    parser.add_argument("--metric", default="val/loss", help="metric to compare (default val/loss)")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default runs)")
    parser.add_argument("--tracking-uri", help="MLflow server or database (default: MLFLOW_TRACKING_URI, else --runs)")
    parser.add_argument("--out", type=Path, help="picture to write, .png or .svg")
    arguments = parser.parse_args(argv)
    if arguments.out is not None and arguments.out.suffix not in (".png", ".svg"):
        raise UserError(f"--out {arguments.out}: name a file that ends in .png or .svg")
    curves: dict[str, list[Curve]] = {}
    with _tracker(arguments.tracking_uri, arguments.runs) as client:
        for item in arguments.names:
            name, _, label = item.partition("=")
            curves[label or name] = _curves(client, name, arguments.metric)
    print(table(curves, arguments.metric))
    if arguments.out is not None:
        draw(curves, arguments.metric, arguments.out)
        print(f"wrote {arguments.out}")
    return 0


def table(curves: dict[str, list[Curve]], metric: str) -> str:
    """Name, runs, last step, and mean ± sample standard deviation of the last value."""
    width = max(len(name) for name in curves)
    lines = [f"{'name':<{width}}  runs  step  {metric} (mean ± std)"]
    for name, runs in curves.items():
        last = [curve[-1][1] for curve in runs]
        spread = f" ± {statistics.stdev(last):.4f}" if len(last) > 1 else ""
        lines.append(f"{name:<{width}}  {len(runs):>4}  {runs[0][-1][0]:>4}  {statistics.mean(last):.4f}{spread}")
    return "\n".join(lines)


def draw(curves: dict[str, list[Curve]], metric: str, out: Path) -> None:
    """Mean over the runs of a name, with the range between the lowest and the highest as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    for colour, (name, runs) in zip(COLOURS * len(curves), curves.items(), strict=False):
        values: dict[int, list[float]] = defaultdict(list)
        for curve in runs:
            for step, value in curve:
                values[step].append(value)
        steps = sorted(values)
        mean = [statistics.mean(values[step]) for step in steps]
        axes.plot(
            steps, mean, color=colour, label=f"{name}: {mean[-1]:.2f} ({len(runs)} runs)", marker="o", markersize=3
        )
        axes.fill_between(
            steps,
            [min(values[s]) for s in steps],
            [max(values[s]) for s in steps],
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
    unit = " (nats per token)" if metric.endswith("loss") else ""
    axes.set(xlabel="optimizer steps", ylabel=f"{metric}{unit}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a file in a folder that can be written") from error
    finally:
        pyplot.close(figure)


@contextmanager
def _tracker(tracking_uri: str | None, runs: str) -> Iterator[Any]:
    """A client of the MLflow that is meant. Raises UserError where there is none or it does not answer."""
    from lrtrain.tracking.destination import quiet, redact, resolve_uri, sqlite_path

    quiet()
    from mlflow import MlflowClient, MlflowException

    uri = resolve_uri(tracking_uri, runs)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise UserError(
            f"nothing is tracked in {database}: correct --runs or --tracking-uri, or train with lrtrain fit"
        )
    try:
        yield MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise UserError(f"MLflow at {redact(uri)} does not answer: start it, or correct --tracking-uri") from error


def _curves(client: Any, name: str, metric: str) -> list[Curve]:
    """The metric's points (step, value) of every finished run of an experiment.

    Raises:
        UserError: no such name, no finished run, or no such metric, with the nearest that there are.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = [e.name for e in client.search_experiments()]
        raise UserError(f"no runs of the name {name!r} are tracked{_near(name, known)}")
    found = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    if not found:
        raise UserError(f"no run of the name {name!r} has finished: let lrtrain fit end first")
    curves = []
    for run in found:
        points = sorted({(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)})
        if not points:
            raise UserError(
                f"run {run.info.run_name} of {name!r} has no metric {metric!r}{_near(metric, run.data.metrics)}"
            )
        curves.append(points)
    return curves


def _near(name: str, known: Any) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)
    return f"; there are {', '.join(near or sorted(known)[:8])}" if known else ""
