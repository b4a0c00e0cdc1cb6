"""One HTML page with everything inside: it opens offline, on a phone and on a desktop, in light and in dark."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template

from lrtrain.runtime.files import writing
from lrtrain.studies.compare.comparison import Table, figure
from lrtrain.studies.compare.figure import INK, inline_svg, looks
from lrtrain.studies.compare.groups import Group, differing
from lrtrain.studies.compare.panels import Panel, Shares

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: $ink; --paper: #ffffff; --line: #d0d7de; --soft: #59636e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #3d444d; --soft: #9198a1; } }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { max-width: 48rem; } .soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
code, pre { font-size: .85rem; } pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } .text td, .text th { text-align: left; }
.keys td:first-child { min-width: 11rem; white-space: normal; overflow-wrap: anywhere; font: .85rem monospace; }
.figures { display: grid; grid-template-columns: 1fr; gap: 1.5rem; }
@media (min-width: 60rem) { .figures { grid-template-columns: 1fr 1fr; } }
figure { margin: 0; min-width: 0; } figure svg { width: 100%; height: auto; display: block; }
figcaption { font-weight: 600; color: var(--ink); }
</style>
</head>
<body>
<h1>$title</h1>
<p class="soft">$subtitle</p>
$body
</body>
</html>
""")


def write_page(
    groups: Sequence[Group],
    metric: str,
    table: Table,
    panels: Sequence[Panel | Shares],
    notes: Sequence[str],
    command: str,
    out: Path,
) -> None:
    """Writes the page: table, figures, what is missing, configuration, runs with their code version, and the command.

    Args:
        groups: What is compared.
        metric: The metric of the table and of the first figures.
        table: The table.
        panels: The figures.
        notes: What is missing or to be minded, a line each.
        command: The command line that made the page.
        out: The file.

    Raises:
        UserError: the file cannot be written.
    """
    look = looks([group.label for group in groups])
    figures = [
        f"<figure><figcaption>{escape(panel.title)}</figcaption>\n{inline_svg(panel, look, f'f{index}')}</figure>"
        for index, panel in enumerate(panels)
    ]
    body = [
        "<h2>Result</h2>",
        _table(table.header, table.rows),
        '<p class="soft">Mean ± sample standard deviation over the runs of a name. Columns “at …” are taken at the '
        "last point that all runs have reached, between logged points by interpolation.</p>",
        *([f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"] if notes else []),
        "<h2>Figures</h2>",
        '<p class="soft">Lines are means over the runs of a name, bands reach from the lowest to the highest run; runs '
        "with many points are averaged over neighboring ones. A steep beginning may lie above the picture.</p>",
        f'<div class="figures">{"".join(figures)}</div>',
        "<h2>Configuration: what differs</h2>",
        _differences(groups),
        "<h2>Runs</h2>",
        _runs(groups, metric),
        "<h2>Made by</h2>",
        f"<pre>{escape(command)}</pre>",
    ]
    named = ", ".join(group.label for group in groups) if len(groups) <= 4 else f"{len(groups)} names"
    title = f"{metric} of {named}"
    count = sum(len(group.runs) for group in groups)
    subtitle = f"{count} finished runs, {len(groups)} names · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC · lrtrain compare"
    text = PAGE.substitute(title=escape(title), subtitle=escape(subtitle), body="\n".join(body), ink=INK)
    with writing(f"--html {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls inside itself."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table class="{kind}"><tr>{head}</tr>\n{body}</table></div>'


def _differences(groups: Sequence[Group]) -> str:
    found = differing(groups)
    if not found:
        return "<p>No key of the configuration differs between the names.</p>"
    return _table(
        ["key", *(group.label for group in groups)], [[key, *of_key] for key, of_key in found.items()], "text keys"
    )


def _runs(groups: Sequence[Group], metric: str) -> str:
    header = ["run", "name", "seed", "last value", "began (UTC)", "commit", "lrtrain", "torch", "hardware"]
    rows = []
    for group in groups:
        for run in group.runs:
            commit = run.tags.get("git.commit", "null")
            known = commit[:10] + (", with changes" if run.tags.get("git.dirty") == "true" else "")
            row = [
                run.run_name,
                group.label,
                run.params.get("seed_everything", "–"),
                figure(run.last[metric]),
                f"{datetime.fromtimestamp(run.start / 1000, UTC):%Y-%m-%d %H:%M}",
                "not recorded" if commit == "null" else known,
                run.tags.get("versions.lrtrain", "–"),
                run.tags.get("versions.torch", "–"),
                f"{run.tags.get('hardware.cpu', '–')}, {run.tags.get('hardware.cores', '?')} cores",
            ]
            rows.append(row)
    return _table(header, rows, "text")
