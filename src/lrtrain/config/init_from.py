"""`--init_from`: which checkpoint a run begins from, what its record says of that, and whether the decoder fits."""

import inspect
import re
from argparse import ArgumentError
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from lrtrain.checkpoint import remote_runs
from lrtrain.checkpoint.saved_weights import SavedWeights
from lrtrain.checkpoint.shard_folder import digest, fault
from lrtrain.config.trained_model import made_decoder, newest_checkpoint, resolved_decoder
from lrtrain.nn import Decoder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.stores import is_remote
from lrtrain.training.warm_start import WarmStart

_NOTED = re.compile(r"(.+)#step=(\d+),sha256=([0-9a-f]{64})")
ONLY_AT_FIRST = ("embedding_std", "initial_scale")
"""Arguments of a decoder that say how its weights begin, and nothing that is computed later."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run began from: its path or URL, optimizer steps done, and its sha256.

    As text, `runs/base/0001/checkpoints/step-00000200.ckpt#step=200,sha256=…`, it is the value of `init_from` in the
    run's record, and may be given again: then it must be the very same checkpoint.
    """

    where: str
    step: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.where}#step={self.step},sha256={self.sha256}"

    @classmethod
    def noted(cls, text: str) -> "Origin | None":
        """What a record says, or None for a path or URL alone."""
        match = _NOTED.fullmatch(text)
        return cls(match[1], int(match[2]), match[3]) if match else None


def find_origin(asked: str) -> tuple[Origin, Path]:
    """The checkpoint that a path or URL means, and where it is on this disk, whole.

    Raises:
        UserError: there is none, it is not whole, or it is another than a record says.
    """
    noted = Origin.noted(asked)
    where = noted.where if noted else asked
    if not where:
        raise UserError("--init_from is empty: name a checkpoint, a run directory, a folder of runs, or leave it out")
    if is_remote(where):
        where = remote_runs.newest_url(where)
        path = remote_runs.cached(where)
    else:
        if (Path(where) / "config.json").is_file():
            raise UserError(f"--init_from {where} is a model of transformers: lrtrain import makes a checkpoint of it")
        path = newest_checkpoint(Path(where))
        where = str(path)
    if why := fault(path):
        raise UserError(f"--init_from {where}: {why}; name a whole .ckpt")
    found = Origin(where, SavedWeights(path, checked=True).step, digest(path))
    if noted and found.sha256 != noted.sha256:
        raise UserError(
            f"--init_from {where}: it is another checkpoint than the one recorded, step {found.step} with sha256 "
            f"{found.sha256[:12]}… and not {noted.step} with {noted.sha256[:12]}…; to begin from it, leave out #step=…"
        )
    return found, path


def carried_on(asked: str | None, checkpoint: Path) -> str | None:
    """What the record of a resumed run says: what it began from, which must be what is asked for now.

    Raises:
        UserError: the run of the checkpoint began from other weights, or without any.
    """
    text = SavedWeights(checkpoint, checked=True).config
    recorded = (yaml.safe_load(text) or {}).get("init_from") if text else None
    if asked is None or asked == recorded:
        return recorded
    noted = Origin.noted(recorded) if recorded else None
    if noted is None or not _means(asked, noted):
        began = f"from {noted.where} (step {noted.step}, sha256 {noted.sha256[:12]}…)" if noted else "without it"
        raise UserError(
            f"--init_from {asked}: the run of {checkpoint} began {began}, and is to go on; leave out --init_from to go "
            "on, or give another --name to begin a new run"
        )
    return recorded


def _means(asked: str, noted: Origin) -> bool:
    """Whether what is asked for is the recorded checkpoint, or a run or folder that held it: it may have newer ones."""
    again = Origin.noted(asked)
    if again is not None:
        return again.sha256 == noted.sha256
    if is_remote(asked):
        return f"{noted.where}/".startswith(f"{asked.rstrip('/')}/")
    if Path(noted.where).resolve().is_relative_to(Path(asked).resolve()):
        return True
    try:
        return find_origin(asked)[0].sha256 == noted.sha256
    except UserError:
        return False


def warm_start(origin: Origin, path: Path, decoder: dict[str, Any]) -> WarmStart:
    """The weights of a checkpoint for the decoder of a configuration, which were compared without reading a number.

    Raises:
        UserError: names the first field or weight that differs.
    """
    saved = SavedWeights(path, checked=True)
    if not saved.config:
        raise UserError(f"--init_from {origin.where} holds no configuration: use one of lrtrain fit or lrtrain import")
    of_saved = yaml.safe_load(saved.config)["model"]["decoder"]
    try:
        configs = resolved_decoder(of_saved), resolved_decoder(decoder)
        check_fields(*configs, origin.where)
    except ArgumentError as error:
        raise UserError(f"--init_from {origin.where}: {' '.join(str(error).split())}") from error
    found = WarmStart(saved, made_decoder(of_saved, path), f"{origin.where} (step {origin.step})")
    found.check(made_decoder(decoder, path))
    if differing := unlike(*configs, found.copied):
        found.notes.append(
            f"init_from {origin.where}: weights are copied into what may compute something else with them: "
            f"{'; '.join(differing)}"
        )
    return found


def check_fields(saved: dict[str, Any], given: dict[str, Any], where: str) -> None:
    """Compares what decoders compute beside their weights: heads, norms, rotary base; projections are not looked at.

    Raises:
        UserError: another class, or names the fields that differ.
    """
    if saved["class_path"] != given["class_path"]:
        raise UserError(
            f"--init_from {where} is of another architecture: its decoder is {saved['class_path']}, model.decoder is "
            f"{given['class_path']}"
        )
    known = inspect.signature(Decoder).parameters
    theirs, ours = (_numbers(config["init_args"]) for config in (saved, given))
    differing = [
        f"{name} is {ours.get(name)}, its {theirs.get(name)}"
        for name in [*ours, *(name for name in theirs if name not in ours)]
        if ours.get(name) != theirs.get(name) and name in known
    ]
    if differing:
        raise UserError(
            f"--init_from {where} is of another architecture: model.decoder: {'; '.join(differing)}; set what it has"
        )


def unlike(saved: dict[str, Any], given: dict[str, Any], copied: Collection[str]) -> list[str]:
    """Arguments of classes that are not lrtrain's which differ: what they change is not known here.

    Args:
        saved: The resolved decoder of the checkpoint.
        given: That of the configuration.
        copied: Names of the projections whose weights are copied.
    """
    theirs, ours = saved["init_args"], given["init_args"]
    beside = {key: value for key, value in ours.items() if key not in inspect.signature(Decoder).parameters}
    found = _differing("model.decoder.", beside, theirs)
    for name in copied:
        here, there = _maker(ours, name), _maker(theirs, name)
        if here and there and here["class_path"].partition(".")[0] not in ("lrtrain", "torch"):
            place = f"{re.sub(r'[.][0-9]+[.]', '.*.', name)}: {here['class_path']}: "
            found += _differing(place, here.get("init_args", {}), there.get("init_args", {}))
    return list(dict.fromkeys(found))


def _maker(arguments: dict[str, Any], projection: str) -> dict[str, Any] | None:
    """What makes a projection of a decoder, as `nn.Decoder` chooses it; None where that is not known."""
    overrides = arguments.get("overrides") or {}
    part = projection.split(".")[2] if projection.count(".") > 2 else ""
    made = next((overrides[pattern] for pattern in overrides if fnmatchcase(projection, pattern)), arguments.get(part))
    return made if isinstance(made, dict) and "class_path" in made else None


def _differing(place: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """`<place><name> is 2, its 1` of each argument; None stands for one that is not there."""
    return [
        f"{place}{name} is {value}, its {theirs.get(name)}" for name, value in ours.items() if value != theirs.get(name)
    ]


def _numbers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are no projections, as the decoder reads them."""
    found = {
        name: value
        for name, value in arguments.items()
        if name not in (*ONLY_AT_FIRST, "overrides") and not (isinstance(value, dict) and "class_path" in value)
    }
    if "kv_heads" in found and found["kv_heads"] is None:
        found["kv_heads"] = found.get("heads")
    return found
