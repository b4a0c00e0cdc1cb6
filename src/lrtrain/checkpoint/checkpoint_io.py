"""Lightning's reading and writing of checkpoints as whole files, and checks that model and data fit one."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from tokenizers import Tokenizer
from torch import nn

from lrtrain.checkpoint import directory as checkpoint_folder
from lrtrain.checkpoint import shard_folder as sharded
from lrtrain.checkpoint import single_file as wholefile
from lrtrain.checkpoint.background import BackgroundWriter
from lrtrain.runtime.errors import UserError


class AtomicCheckpointIO(CheckpointIO):
    """Writes whole files; reads files and shard folders, refuses what does not match its checksum, and runs no code
    from it. `training.FSDP` writes folders and, where it is to stay sharded, reads them itself.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: BackgroundWriter | None = None
    ) -> None:
        """Writes the file, or lets `storage_options` write it while the caller goes on.

        Raises:
            UserError: the disk is full or refuses.
        """
        if storage_options is None:
            wholefile.write_whole(checkpoint, Path(path))
            return
        wholefile.check_plain(checkpoint)
        storage_options.start(checkpoint, Path(path), partial(wholefile.write_whole, path=Path(path)))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Loads onto the CPU, or where `map_location` says for a file.

        Raises:
            UserError: it is anything but a whole checkpoint.
        """
        return of_lightning(sharded.read(Path(path), map_location or "cpu", weights_only is not False), path)

    def remove_checkpoint(self, path: str | Path) -> None:
        checkpoint_folder.remove(Path(path))


def load_without_optimizer(path: Path) -> dict[str, Any]:
    """Loads a checkpoint without its optimizer states, and no weight twice: those of a file stay in it until asked for.

    Raises:
        UserError: it is anything but a whole checkpoint.
    """
    return of_lightning(sharded.read_weights(path), path)


def check_architecture(checkpoint: Mapping[str, Any], module: nn.Module, path: str | Path, strict: bool = True) -> None:
    """Compares names and shapes of `checkpoint["state_dict"]` with the module's, before anything is copied.

    Raises:
        UserError: names the first parameter that differs (in the module's order) with both shapes; with
            `strict=False` only shapes count, as in `nn.Module.load_state_dict`.
    """
    what = difference(_shapes(checkpoint["state_dict"]), _shapes(module.state_dict()), strict)
    if what:
        raise UserError(f"checkpoint {path} is of another architecture: {what}; use the config.yaml of its run")


def difference(saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], strict: bool = True) -> str:
    """What differs first between a checkpoint's weights and a model's, by names and shapes; empty if nothing."""
    extra = [f"it has {name} {shape}" for name, shape in saved.items() if name not in wanted and strict]
    missing = [f"it lacks the model's {name} {wanted[name]}" for name in wanted if name not in saved and strict]
    differing = [name for name in wanted if saved.get(name, wanted[name]) != wanted[name]]
    if differing:
        return f"its {differing[0]} is {saved[differing[0]]}, the model's is {wanted[differing[0]]}"
    if missing:
        return missing[0] + (f" ({extra[0]})" if extra else "")
    return f"{extra[0]}, which the model lacks" if extra else ""


def check_tokenizer(saved: str, given: str, path: str | Path) -> None:
    """Compares a checkpoint's tokenizer with that of the data, both as the text of a tokenizer.json.

    Raises:
        UserError: they are not the same tokenizer; names the first token that differs.
    """
    if saved == given:
        return
    ours, theirs = Tokenizer.from_str(saved), Tokenizer.from_str(given)
    if ours.to_str() == theirs.to_str():  # written by another version, or with other spaces
        return
    ours_by_id, theirs_by_id = ({i: token for token, i in t.get_vocab().items()} for t in (ours, theirs))
    what = "its settings differ"
    for i in sorted(ours_by_id.keys() | theirs_by_id.keys()):
        if ours_by_id.get(i) != theirs_by_id.get(i):
            what = f"its token {i} is {ours_by_id.get(i)!r}, the data's is {theirs_by_id.get(i)!r}"
            break
    raise UserError(
        f"checkpoint {path} is of another tokenizer than the data: {what}; name the data of its run (data.path), or "
        "prepare this text with the tokenizer.json of its run"
    )


def of_lightning(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Returns a checkpoint that is one of `lrtrain fit`. Raises UserError for another file of ours."""
    if missing := [key for key in ("state_dict", "pytorch-lightning_version") if key not in checkpoint]:
        raise UserError(f"cannot use checkpoint {path}: it has no {missing[0]!r}; pass one of `lrtrain fit`")
    return checkpoint


def _shapes(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}
