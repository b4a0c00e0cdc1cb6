"""The README.md of an exported folder: what it is, how to load it, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lrtrain.checkpoint.huggingface.exported_folder import Written
from lrtrain.checkpoint.huggingface.imported import Ancestor, Imported
from lrtrain.checkpoint.huggingface.llama_layout import MODELING
from lrtrain.nn import Decoder
from lrtrain.nn.projection import projections
from lrtrain.nn.rewriting import factors

TRUST = f"""
`{MODELING}.py` in the folder computes with the factors. `trust_remote_code=True` lets transformers run that file, and
nothing else: it downloads nothing, and can be read before it is trusted. Without it transformers refuses the folder.
"""
KINDS = {"low_rank": "low-rank", "spectral": "spectral"}


@dataclass(frozen=True)
class Facts:
    """What is known of a run and of the folder made of it; what is None is left out, or said to be unknown.

    `metrics` has the last step up to the checkpoint's and the value there, by name; `versions` are those of packages in
    training, `trained_at` and `exported_at` commits.
    """

    name: str
    format: str
    license: str | None
    config: dict[str, Any]
    step: int
    tokens_seen: float | None
    metrics: dict[str, tuple[int, float]]
    length: int
    end_of_text: str
    projections: str
    truncation: str | None
    checkpoint: str
    digest: str
    versions: Mapping[str, str]
    trained_at: str | None
    exported_at: str | None
    dtype: str
    imported: Imported | None = None
    ancestor: Ancestor | None = None


def card(facts: Facts, written: Written) -> str:
    """The page, with the metadata that a hub reads at its head."""
    head: dict[str, Any] = {"license": facts.license} if facts.license else {}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["lrtrain"]}
    trust = ", trust_remote_code=True" if facts.format == "factorized" else ""
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {facts.name}{"" if facts.imported else f", step {facts.step:,}"}

{_what_it_is(facts)}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})
model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})
```
{TRUST if trust else ""}
{_about(facts)}

## Weights and provenance

{_table(_provenance(facts, written))}

## License

{_license(facts)}
"""


def _license(facts: Facts) -> str:
    origin = facts.imported or facts.ancestor
    if origin is None or facts.license is None:
        unknown = "Not stated. Ask whoever trained it; the texts that it was trained on have licenses, too."
        return facts.license or unknown
    began = "" if facts.imported else ", with whose weights its training began"
    if facts.license == origin.license:
        return f"{facts.license}, as {origin.source} states it{began}."
    return f"{facts.license}. {origin.source}{began and f'{began},'} states {origin.license or 'no license'}."


def _what_it_is(facts: Facts) -> str:
    if facts.ancestor is not None:
        return f"`{facts.ancestor.source}`, trained further with lrtrain. It continues text."
    if facts.imported is None:
        return (
            "A Llama-style language model, pre-trained with lrtrain. It continues text, and was not tuned to follow "
            "instructions."
        )
    changed = "its projections as factors" if facts.imported.factorized or facts.truncation else "its weights unchanged"
    return f"`{facts.imported.source}`, read and written again by lrtrain with {changed}."


def _about(facts: Facts) -> str:
    if facts.imported is not None:
        rows = {
            "read from": f"`{facts.imported.source}` ({facts.imported.family}), stored there as {facts.imported.stored}"
        }
        rows["projections"] = facts.projections
        if facts.imported.factorized:
            rows["factorized"] = facts.imported.factorized
        rows["trained since"] = "no"
        rows["sequence"] = f"up to {facts.length:,} tokens"
        return f"## Source\n\n{_table(rows)}\n\n`recipe.yaml` has the configuration of the decoder."
    return (
        f"In training a document began after `{facts.end_of_text}`: without a prompt, begin with that token.\n\n"
        f"## Training\n\n{_table(_training(facts))}\n\n`recipe.yaml` is the whole configuration."
    )


def projections_in_words(decoder: Decoder) -> str:
    """`56 low-rank of rank 64 to 192`, and so on for each kind."""
    ranks: dict[str, list[int]] = {}
    for one in projections(decoder).values():
        kept = factors(one)
        kind, size = (KINDS[kept[0]], next(iter(kept[1].values())).shape[1]) if kept else (type(one).__name__, 0)
        ranks.setdefault(kind, []).append(size)
    words = []
    for kind, sizes in ranks.items():
        least, most = min(sizes), max(sizes)
        rank = f" of rank {least}" if least == most else f" of rank {least} to {most}"
        words.append(f"{len(sizes)} {kind}{rank if most else ''}")
    return ", ".join(words)


def _training(facts: Facts) -> dict[str, str]:
    data, model = facts.config["data"], facts.config["model"]
    rows = {"projections": facts.projections, "optimizer of the projections": _class(model["optimizers"]["hidden"])}
    rows["optimizer of the rest"] = _class(model["optimizers"]["other"])
    rows["data"] = _data(data)
    rows["sequence"] = f"{facts.length:,} tokens"
    if origin := facts.config.get("init_from"):
        rows["began with"] = f"the weights of `{origin}`, from which steps and tokens count"
        if facts.ancestor is not None:
            rows["began with"] += f"; they come from `{facts.ancestor.source}` ({facts.ancestor.family}), imported"
    rows["optimizer steps"] = f"{facts.step:,}"
    rows["tokens seen"] = "unknown" if facts.tokens_seen is None else f"{facts.tokens_seen:,.0f}"
    for split, name in (("train", "training"), ("val", "held-out")):
        if found := facts.metrics.get(f"{split}/loss"):
            line = f"{found[1]:.4f} nats per token, at step {found[0]:,}"
            if (bits := facts.metrics.get(f"{split}/bits_per_byte")) and bits[0] == found[0]:
                line += f"; {bits[1]:.4f} bits per byte"
            rows[f"{name} loss"] = line
        else:
            rows[f"{name} loss"] = "unknown: the run's metrics.jsonl was not beside the checkpoint"
    return rows


def _provenance(facts: Facts, written: Written) -> dict[str, str]:
    rows = {"weights": f"{written.parameters:,} numbers, {facts.dtype}, {facts.format}"}
    if facts.truncation:
        rows["truncated"] = facts.truncation
    rows["checked"] = (
        f"transformers' logits differ from lrtrain's by at most {written.difference:.1e} (bound {written.bound:.1e}) "
        f"over {written.tokens} tokens, in float32"
    )
    if facts.dtype != "float32":
        rows["rounding"] = f"{facts.dtype} moves the logits by at most {written.rounded:.1e}"
    rows["checkpoint"] = f"{facts.checkpoint}, sha256 {facts.digest}"
    rows["read with" if facts.imported else "trained with"] = ", ".join(
        f"{name} {version}" for name, version in facts.versions.items()
    )
    if facts.imported is None:
        rows["commit, training"] = facts.trained_at or "unknown"
    rows["commit, export"] = facts.exported_at or "unknown"
    return rows


def _data(data: dict[str, Any]) -> str:
    if "class_path" in data:
        return f"`{data['class_path']}`"
    if mix := data.get("mix"):
        return ", ".join(f"`{source['path']}` (weight {source['weight']:g})" for source in mix)
    prepare = data.get("prepare") or {}
    sources = ", ".join(f"`{source}`" for source in prepare.get("source", []))
    return f"{sources}, prepared in `{data['path']}`" if sources else f"`{data['path']}`"


def _class(stated: dict[str, Any]) -> str:
    rate = stated.get("init_args", {}).get("lr")
    return stated["class_path"].rpartition(".")[2] + (f", lr {rate:g}" if isinstance(rate, int | float) else "")


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {' '.join(text.replace('|', '/').split())} |" for name, text in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
