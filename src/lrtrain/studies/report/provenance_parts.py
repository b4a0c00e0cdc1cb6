"""The parts of a run's page on where it comes from: configuration, data, machine, code, checkpoints."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import yaml

from lrtrain.config.base_recipe import BASE, differences
from lrtrain.runtime.units import short
from lrtrain.studies.pages.document import Document, table
from lrtrain.studies.report.written_parts import Texts
from lrtrain.tracking.names import flatten


def newest(texts: Texts, name: str) -> str | None:
    """The newest text of an artifact; sessions that changed it have added `name.2.json` and so on."""
    stem, _, suffix = name.rpartition(".")
    numbered = {1: name} | {int(m[1]): key for key in texts if (m := re.fullmatch(rf"{stem}\.(\d+)\.{suffix}", key))}
    found = [texts[key] for _, key in sorted(numbered.items()) if key in texts]
    return found[-1][-1][1] if found else None


def add_configuration(page: Document, texts: Texts) -> None:
    """Adds how the run differs from its recipe, and all of its configuration."""
    page.section("Configuration")
    text, whole = newest(texts, BASE), newest(texts, "config.yaml")
    if text is None or whole is None:
        page.missing("Its difference to a recipe: not recorded. Runs record their recipe since lrtrain has this page.")
    else:
        _add_differences(page, json.loads(text), flatten(yaml.safe_load(whole)))
    if whole is None:
        page.missing("The whole configuration: not recorded.")
        return
    with page.folded("The whole configuration, as --config takes it again"):
        page.add(f"<pre>{escape(whole)}</pre>")


def _add_differences(page: Document, base: Mapping[str, Any], params: Mapping[str, str]) -> None:
    if not base["name"]:
        page.missing("No recipe: the run had no --config. What was set differs from the defaults.")
    else:
        kind = "shipped recipe" if base["shipped"] else "file"
        page.add(f"<p>What differs from the {kind} <code>{escape(base['name'])}</code>, as that was then:</p>")
    rows = [list(row) for row in differences(base, params)]
    header = ["key", base["name"] or "default", "this run", "set by"]
    page.add(table(header, rows, "text keys wrap sortable") if rows else "<p>Nothing.</p>")


def add_data(page: Document, texts: Texts) -> None:
    """Adds what the data manifest says."""
    page.section("Data")
    text = newest(texts, "data_manifest.json")
    if text is None:
        page.missing("Not recorded: the data module has no manifest, or the run ended before its first batch.")
        return
    manifest = json.loads(text)
    rows = []
    for split in ("train", "val"):
        of_split = manifest.get(split, {})
        sets = {"": of_split} if "tokens" in of_split else of_split
        rows += [_split(split, name, found) for name, found in sets.items() if isinstance(found, dict)]
    page.add(table(["split", "data set", "documents", "bytes of text", "tokens", "bytes per token"], rows))
    plain = {key: value for key, value in manifest.items() if key not in ("train", "val", "files")}
    about = [[key, value] for key, value in flatten(plain).items() if value not in ("null", "[]")]
    page.add("<p></p>" + table(["manifest", ""], about, "text keys wrap"))
    with page.folded("The whole manifest"):
        page.add(f"<pre>{escape(json.dumps(manifest, indent=1, ensure_ascii=False))}</pre>")


def _split(split: str, name: str, found: Mapping[str, Any]) -> list[str]:
    counts = [found.get(key) for key in ("documents", "bytes", "tokens")]
    ratio = f"{found['bytes'] / found['tokens']:.3f}" if found.get("bytes") and found.get("tokens") else "–"
    return [split, name or "–", *("–" if count is None else f"{count:,}" for count in counts), ratio]


def add_machine(page: Document, texts: Texts) -> None:
    """Adds machine, versions and git state; of a resumed run those of each session in which they changed."""
    page.section("Machine, versions, code")
    kept = [(name, found[-1][1]) for name, found in texts.items() if re.fullmatch(r"provenance(\.\d+)?\.json", name)]
    if not kept:
        page.missing("Not recorded: the run ended before its first batch.")
        return
    columns = [flatten(json.loads(text)) for _, text in kept]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *(column.get(key, "–") for column in columns)] for key in keys]
    names = ["this run"] if len(kept) == 1 else ["first session", *(f"since change {i}" for i in range(1, len(kept)))]
    page.add(table(["", *names], rows, "text keys wrap"))
    if columns[-1].get("git.dirty") == "true":
        page.missing("The code had uncommitted or untracked files: the commit alone does not give this run again.")


def add_checkpoints(page: Document, run_dir: Path) -> None:
    """Adds the checkpoints that are there now."""
    page.section("Checkpoints")
    found = sorted(run_dir.glob("checkpoints/step-*.ckpt"))
    if not found:
        page.missing(f"None in {run_dir / 'checkpoints'} on this machine at the time of this page.")
        return
    rows = [[str(int(path.stem.partition("-")[2])), *_file(path), str(path)] for path in found]
    page.add(table(["step", "bytes", "written (UTC)", "path"], rows, "text"))
    page.add(
        '<p class="soft">Those that are there now; older ones are removed by checkpoints.keep. Their contents were not '
        "read for this page.</p>"
    )


def _file(path: Path) -> list[str]:
    """Size and time of a checkpoint; one of several processes is a folder."""
    size = sum(one.stat().st_size for one in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return [short(size), f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M}"]
