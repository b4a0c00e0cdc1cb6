"""The parts of a run's page on held-out text: loss by source and position, and what the model wrote."""

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from lrtrain.studies.compare.comparison import figure
from lrtrain.studies.pages.document import Document, table
from lrtrain.studies.report.run_figures import loss_by_position, together
from lrtrain.tracking.runs import TrackedRun

Texts = Mapping[str, list[tuple[int | None, str]]]
"""Artifact -> (step, text), as `recorded_texts` reads them."""

POSITIONS = "held_out/by_position.json"


def add_held_out(page: Document, run: TrackedRun, texts: Texts) -> None:
    """Adds the held-out loss by source and by position, each with the step that it is of."""
    page.section("Held-out loss by source and position", "Measured in the run's own validations.")
    sources = [name[1] for key in run.metrics if (name := re.fullmatch(r"val/(.+)/loss", key))]
    if sources:
        rows = [_source(run, name) for name in sources]
        page.add(table(["source", "loss (nats per token)", "perplexity", "bits per byte", "step"], rows, "sortable"))
    else:
        page.missing(
            "By source: the held-out data is one data set, and shards do not keep which file a document is from. A mix "
            "(data.mix) has the loss of each of its data sets."
        )
    by_source = {name: f"val/{name}/loss" for name in sources}
    found = together("Held-out loss by source", "loss (nats per token)", run, by_source)
    positions = loss_by_position(texts.get(POSITIONS, []))
    page.figures([one for one in (found, positions) if one is not None])
    if positions is None:
        page.missing("By position: not recorded. Runs record it after each validation since lrtrain has this page.")


def _source(run: TrackedRun, name: str) -> list[str]:
    keys = [f"val/{name}/{figure}" for figure in ("loss", "perplexity", "bits_per_byte")]
    values = [figure(run.last[key]) if key in run.last else "–" for key in keys]
    return [name, *values, str(run.metrics[keys[0]].step[-1])]


def add_samples(page: Document, texts: Texts) -> None:
    """Adds what the model wrote after the same held-out beginnings, at several steps."""
    kept = [json.loads(text) for name, found in texts.items() if name.startswith("samples/") for _, text in found[-1:]]
    kept = sorted((one for one in kept if one["samples"]), key=lambda one: one["step"])
    if not kept:
        page.section("Samples of text")
        page.missing(
            "None: the run wrote none (TextSamples with new_tokens 0, data without a tokenizer, no validation, or a "
            "version without them). `lrtrain generate` continues texts with any checkpoint that is kept."
        )
        return
    steps = ", ".join(str(one["step"]) for one in kept)
    page.section(
        "Samples of text",
        f"The same held-out beginnings, continued during the run at steps {steps} by the weights of that step: "
        f"temperature {kept[-1]['temperature']:g}, top-p {kept[-1]['top_p']:g}. Gray: a beginning.",
    )
    for prompt in dict.fromkeys(sample["prompt"] for one in kept for sample in one["samples"]):
        _add_continuations(page, prompt, kept)


def _add_continuations(page: Document, prompt: str, kept: list[dict[str, Any]]) -> None:
    """Adds a beginning, its continuations by step, and how the held-out text goes on."""
    found = [(one["step"], sample) for one in kept for sample in one["samples"] if sample["prompt"] == prompt]
    texts = [(f"step {step}", sample.get("continuation", f"[none: {sample.get('none')}]")) for step, sample in found]
    own = [("how the held-out text goes on", sample["held_out"]) for _, sample in found[-1:] if "held_out" in sample]
    cells = "".join(
        f'<div><div class="soft">{escape(what)}</div><pre class="text">{escape(text)}</pre></div>'
        for what, text in [*texts, *own]
    )
    page.add(f'<pre class="text beginning">{escape(prompt)}</pre><div class="samples">{cells}</div>')
