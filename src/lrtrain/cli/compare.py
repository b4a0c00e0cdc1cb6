"""`lrtrain compare`: tracked runs beside each other, as a table, as a picture and as a page."""

import shlex
from pathlib import Path

from lrtrain.cli.arguments import Arguments
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table
from lrtrain.studies.compare.comparison import compare
from lrtrain.studies.compare.curves import AXES
from lrtrain.studies.compare.figure import picture
from lrtrain.studies.compare.groups import Group, check_data, group_runs, ranked
from lrtrain.studies.compare.page import BESIDE, write_page
from lrtrain.studies.compare.panels import all_panels, metric_panel
from lrtrain.studies.pages.drawn import Panel
from lrtrain.tracking.named_runs import named_runs


def main(argv: list[str]) -> int:
    """Prints the table; draws one line for each label: the mean over its finished runs, and their range."""
    parser = Arguments(
        prog="lrtrain compare",
        description="Compares finished tracked runs; the runs of a name, or of one LABEL, count as repetitions.",
    )
    parser.add_argument("names", nargs="*", help="names of runs (--name of lrtrain fit), or NAME=LABEL")
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help="only runs with this tag")
    parser.add_argument("--study", help="only runs of this study of lrtrain sweep")
    parser.add_argument("--metric", default="val/loss", help="metric to compare (default val/loss)")
    parser.add_argument(
        "--x", default="steps", choices=(*AXES, "all"), help="axis of --out, or all figures of the page"
    )
    parser.add_argument("--runs", default="runs", help="folder of the runs (default runs)")
    parser.add_argument("--tracking-uri", help="MLflow server or database (default: MLFLOW_TRACKING_URI, else --runs)")
    parser.add_argument("--out", type=Path, help="picture to write, .png or .svg")
    parser.add_argument("--html", type=Path, help="page to write, .html: everything on it, opens offline")
    parser.add_argument("--anyway", action="store_true", help="compare runs of other data or another tokenizer too")
    arguments = parser.parse_args(argv)
    if not arguments.names and not arguments.tag and arguments.study is None:
        parser.error("the following arguments are required: names, --tag or --study")
    for flag, out, suffixes in (("out", arguments.out, (".png", ".svg")), ("html", arguments.html, (".html", ".htm"))):
        if out is not None and out.suffix not in suffixes:
            raise UserError(f"--{flag} {out}: name a file that ends in {' or '.join(suffixes)}")

    labels = _labels(arguments.names)
    everything = arguments.html is not None or arguments.x == "all"
    found = named_runs(
        arguments.tracking_uri,
        arguments.runs,
        names=list(labels),
        tags=_tags(arguments.tag),
        study=arguments.study,
        metrics=[arguments.metric, *AXES.values(), *([*BESIDE, "spectral/*"] if everything else [])],
    )
    groups = group_runs(found, labels)
    if not labels:
        groups = ranked(groups, arguments.metric)
    warnings = check_data(groups, arguments.anyway)
    result = compare(groups, arguments.metric)
    print("\n".join([table([result.header, *result.rows]), *warnings, *result.notes]))
    if arguments.out is not None:
        every = arguments.x == "all"
        drawn = all_panels(groups, arguments.metric)[0] if every else [_panel(groups, arguments.metric, arguments.x)]
        picture(drawn, [group.label for group in groups], arguments.out)
        print(f"wrote {arguments.out}")
    if arguments.html is not None:
        command = shlex.join(["lrtrain", "compare", *argv])
        write_page(groups, arguments.metric, result, warnings, command, arguments.html)
        print(f"wrote {arguments.html}")
    return 0


def _panel(groups: list[Group], metric: str, axis: str) -> Panel:
    panel = metric_panel(groups, metric, axis)
    if isinstance(panel, str):
        raise UserError(f"--x {axis}: {panel}")
    return panel


def _labels(names: list[str]) -> dict[str, list[str]]:
    """The labels that each name was given, in order: one label of several names makes one group of them."""
    labels: dict[str, list[str]] = {}
    for item in names:
        name, _, label = item.partition("=")
        labels.setdefault(name, []).append(label or name)
    return labels


def _tags(tags: list[str]) -> dict[str, str]:
    pairs = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not key or not equals:
            raise UserError(f"--tag {tag}: give it as KEY=VALUE")
        pairs[key] = value
    return pairs
