"""Lightning's reading and writing of checkpoints as whole files, and the check that a model fits one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import nn

from lrtrain.checkpoint import directory as checkpoint_folder
from lrtrain.checkpoint import shard_folder as sharded
from lrtrain.checkpoint import single_file as wholefile
from lrtrain.runtime.errors import UserError


class WholeFileIO(CheckpointIO):
    """Writes whole files; reads these and folders of shards, only what matches its checksum, and no code out of it.

    `training.FSDP` writes and, where it is to stay sharded, reads folders itself.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises UserError where the disk is full or refuses."""
        if storage_options is not None:
            raise TypeError("WholeFileIO writes local files: storage_options has no meaning here")
        wholefile.write_whole(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Onto the CPU, or a file where `map_location` says; raises UserError for anything but a whole checkpoint."""
        checkpoint = sharded.read(Path(path), map_location or "cpu", weights_only is not False)
        if missing := [key for key in ("state_dict", "pytorch-lightning_version") if key not in checkpoint]:
            raise UserError(f"cannot use checkpoint {path}: it has no {missing[0]!r}; pass one of `lrtrain fit`")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        checkpoint_folder.remove(Path(path))


def check_architecture(checkpoint: Mapping[str, Any], module: nn.Module, path: str | Path, strict: bool = True) -> None:
    """Compares names and shapes of `checkpoint["state_dict"]` with the module's, before anything is copied.

    Raises:
        UserError: names the first parameter that differs (in the module's order) with both shapes; with
            `strict=False` only shapes count, as in `nn.Module.load_state_dict`.
    """
    saved, wanted = _shapes(checkpoint["state_dict"]), _shapes(module.state_dict())
    extra = [name for name in saved if name not in wanted]
    differing = next((name for name in wanted if saved.get(name, wanted[name]) != wanted[name]), None)
    missing = next((name for name in wanted if name not in saved), None) if strict else None
    if differing is not None:
        what = f"its {differing} is {saved[differing]}, the model's is {wanted[differing]}"
    elif missing is not None:
        instead = f" (it has {extra[0]} {saved[extra[0]]})" if extra else ""
        what = f"it lacks the model's {missing} {wanted[missing]}{instead}"
    elif extra and strict:
        what = f"it has {extra[0]} {saved[extra[0]]}, which the model lacks"
    else:
        return
    raise UserError(f"checkpoint {path} is of another architecture: {what}; use the config.yaml of its run")


def _shapes(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}
