"""What MLflow shows as a run's description: what is trained, how, on what, and where it lies, in Markdown."""

import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DECODER = ("depth", "width", "heads", "ffn_width", "vocab_size")


def run_note(folder: Path, config: Mapping[str, Any], module: Any) -> str:
    """A table of what matters most of a resolved configuration; what a part of one's own does not state is left out."""
    rows = {
        "model": _model(config, getattr(module, "decoder", None)),
        "projections": _projections(config),
        "optimizers": _optimizers(config),
        "data": _data(config.get("data") or {}),
        "length": _length(config.get("trainer") or {}),
        "folder": f"`{folder.absolute()}` on {platform.node()}",
        "began from": f"`{config['init_from']}`" if config.get("init_from") else "",
    }
    lines = [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text]
    commands = [
        f"`lrtrain fit --config {folder}/config.yaml --ckpt_path last` goes on with it.",
        f"`lrtrain generate {folder}` writes with it.",
    ]
    program = Path(sys.argv[0]).name if sys.argv else ""
    command = re.sub(r"://([^:/@\s]+):[^@\s]+@", r"://\1:***@", " ".join(["lrtrain", *sys.argv[1:]]))
    began = [f"`{command}`", ""] if program in ("lrtrain", "__main__.py") else []
    return "\n".join([*began, "| | |", "|---|---|", *lines, "", *commands])


def _model(config: Mapping[str, Any], decoder: Any) -> str:
    given = _arguments(config["model"]["decoder"])
    text = ", ".join(f"{name} {given[name]}" for name in DECODER if name in given)
    if decoder is None:
        return text
    parameters, dense = sum(p.numel() for p in decoder.parameters()), decoder.dense_equivalent()
    return f"{text}; {parameters:,} parameters, dense {dense:,}"


def _projections(config: Mapping[str, Any]) -> str:
    given = _arguments(config["model"]["decoder"])
    return "; ".join(f"{part} {_described(given[part])}" for part in ("attention", "mlp") if given.get(part))


def _optimizers(config: Mapping[str, Any]) -> str:
    given = config["model"]["optimizers"]
    named = {"hidden": given.get("hidden"), "other": given.get("other"), **(given.get("overrides") or {})}
    return "; ".join(f"`{slot}` {_described(one, ('lr', 'weight_decay'))}" for slot, one in named.items() if one)


def _data(data: Mapping[str, Any]) -> str:
    given = _arguments(data)
    where = given.get("path") or ", ".join(str(one.get("path")) for one in given.get("mix") or [])
    sizes = [f"{name} {given[name]}" for name in ("block_size", "batch_size") if name in given]
    return ", ".join([*([f"`{where}`"] if where else []), *sizes])


def _length(trainer: Mapping[str, Any]) -> str:
    keys = ("max_steps", "max_epochs", "accumulate_grad_batches", "precision")
    return ", ".join(f"{key} {trainer[key]}" for key in keys if trainer.get(key) not in (None, -1))


def _described(part: Any, keys: tuple[str, ...] = ()) -> str:
    """`LowRankLinear rank_ratio 0.25`: a class with those of its arguments that are set, or with some of them."""
    if not isinstance(part, Mapping):
        return str(part)
    given = {key: value for key, value in _arguments(part).items() if value is not None and (not keys or key in keys)}
    name = str(part.get("class_path", "")).rpartition(".")[2]
    return " ".join([name, *(f"{key} {value}" for key, value in given.items() if not isinstance(value, dict | list))])


def _arguments(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = part.get("init_args") or ({} if "class_path" in part else part)
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
