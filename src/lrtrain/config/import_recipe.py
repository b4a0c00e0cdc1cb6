"""The recipe of an imported model: its decoder, and a run that goes on from its weights."""

from pathlib import Path
from typing import Any

import yaml

from lrtrain.checkpoint.huggingface.factorized_import import PARTS, Factorization, Outcome
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear
from lrtrain.nn.noted_ranks import KINDS

LONGEST = 1024
"""Tokens of the recipe's sequences, at most: a model's own context may be more than a batch has room for."""


def decoder_config(fields: dict[str, Any], asked: Factorization, outcome: Outcome) -> dict[str, Any]:
    """`model.decoder` that makes an imported decoder, before its projections are factorized or after it.

    Args:
        fields: The arguments of `Decoder` but those that make projections.
        asked: How they were factorized.
        outcome: What became of each; of none before.
    """
    kind = KINDS[asked.kind]
    makers = {part: _projection(DenseLinear) for part in PARTS}
    overrides: dict[str, Any] = {}
    ranks = {name: rank for name, rank in outcome.ranks.items() if rank is not None}
    if asked.energy is not None:
        overrides = {name: _projection(kind, rank=rank) for name, rank in ranks.items()}
    elif asked.rank_ratio is not None:
        makers |= {part: _projection(kind, rank_ratio=asked.rank_ratio) for part in asked.parts}
    elif ranks:
        for part in asked.parts:  # a smaller side makes for a smaller rank, the same in all blocks
            inside = {name: rank for name, rank in ranks.items() if name.split(".")[2] == part}
            least = min(inside.values())
            makers[part] = _projection(kind, rank=least)
            larger = {f"blocks.*.{name.split('.', 2)[2]}": rank for name, rank in inside.items() if rank > least}
            overrides |= {name: _projection(kind, rank=rank) for name, rank in larger.items()}
    stated = {key: value for key, value in fields.items() if value is not None}
    return {
        "class_path": f"lrtrain.nn.{Decoder.__name__}",
        "init_args": {**stated, **makers, **({"overrides": overrides} if overrides else {})},
    }


def recipe(
    name: str, source: str, decoder: dict[str, Any], context: int, tokenizer: Path, checkpoint: Path | None = None
) -> str:
    """YAML that `lrtrain fit --config` takes.

    Args:
        name: Of the runs and of the data.
        source: What was imported.
        decoder: `model.decoder`.
        context: Tokens of the longest sequence that the model was made for.
        tokenizer: The file of its tokenizer.
        checkpoint: Whose weights the run begins with; None leaves them fresh.
    """
    content: dict[str, Any] = {"name": name, "seed_everything": 0}
    if checkpoint is not None:
        content["init_from"] = str(checkpoint)
    arguments = dict(decoder["init_args"])
    if overrides := arguments.get("overrides"):
        arguments["overrides"] = {pattern: _Line(maker) for pattern, maker in overrides.items()}
    content["model"] = {
        "decoder": {**decoder, "init_args": arguments},
        "optimizers": _optimizers(decoder["init_args"]),
        "schedule": _made("lrtrain.optim.WarmupCosine", warmup=0.05, final=0.0),
    }
    content["data"] = {
        "path": f"data/{name}",
        "block_size": min(context, LONGEST),
        "batch_size": 4,
        "num_workers": 0,
        "prepare": {"source": ["stdlib"], "tokenizer": str(tokenizer)},
    }
    content["trainer"] = {
        "max_steps": 200,
        "accumulate_grad_batches": 4,
        "gradient_clip_val": 1.0,
        "val_check_interval": 200,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 50,
        "log_every_n_steps": 5,
    }
    content["checkpoints"] = {"every_n_steps": 100, "keep": 2}
    head = f"""\
# {" ".join(source.split())}, imported by lrtrain: a run that goes on from its weights.
# data.prepare.source: put the paths, globs or URLs of your own text there; stdlib is Python's standard library.
# data.block_size: the model was made for sequences of up to {context} tokens.
# model.optimizers: the learning rates are cautious, and not searched; lrtrain sweep finds better ones.
"""
    return head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120)


class _Line(dict[str, Any]):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(_Line, lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line, True))


def _made(path: str, **arguments: Any) -> dict[str, Any]:
    """A class with its arguments, but those that are None."""
    stated = {key: value for key, value in arguments.items() if value is not None}
    return {"class_path": path, **({"init_args": stated} if stated else {})}


def _projection(kind: type, **sizes: Any) -> dict[str, Any]:
    return _made(f"lrtrain.nn.{kind.__name__}", **sizes)


def _optimizers(decoder: dict[str, Any]) -> dict[str, Any]:
    """Spectron for low-rank factors, AdamW for all the rest."""
    adamw = _made("torch.optim.AdamW", lr=0.0001, betas=[0.9, 0.95], weight_decay=0.0)
    paths = [decoder[part]["class_path"] for part in PARTS]
    paths += [maker["class_path"] for maker in decoder.get("overrides", {}).values()]
    if _projection(LowRankLinear)["class_path"] not in paths:
        return {"hidden": adamw, "other": adamw}
    spectron = _made("lrtrain.optim.Spectron", lr=0.005, momentum=0.95, nesterov=True)
    found: dict[str, Any] = {"hidden": spectron, "other": adamw}
    # A projection that stayed dense has a `weight`, which is no factor.
    dense = [part for part in PARTS if decoder[part] == _projection(DenseLinear) and _stays(part, decoder)]
    if dense:
        found["overrides"] = {f"*.{part}.*.weight": adamw for part in dense}
    return found


def _stays(part: str, decoder: dict[str, Any]) -> bool:
    """Whether some projection of a part is made by the part's maker."""
    made = sum(f".{part}." in name for name in decoder.get("overrides", {}))
    return made < decoder["depth"] * {"attention": 4, "mlp": 3}[part]
