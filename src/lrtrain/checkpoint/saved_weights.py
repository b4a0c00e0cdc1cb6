"""The weights of a checkpoint, read when they are asked for: never all at once, and never an optimizer's state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrtrain.checkpoint import shard_folder as sharded
from lrtrain.checkpoint import single_file as wholefile
from lrtrain.checkpoint.checkpoint_io import of_lightning

WEIGHTS = "state_dict"
ANCESTOR = ("source", "family", "license")


class SavedWeights:
    """An open checkpoint. Those of a file are pages of it, which all processes of a host share.

    Args:
        path: A file, or a folder of shards.
        checked: Its checksums were compared a moment ago.

    Attributes:
        step: Optimizer steps done.
        config: The configuration of its run as YAML; None where it holds none.
        tokenizer: The text of its tokenizer.json, or None.
        ancestor: `source`, `family` and `license` of the model that it was imported from, or that its run began with.

    Raises:
        UserError: it is anything but a whole checkpoint.
    """

    def __init__(self, path: Path, checked: bool = False) -> None:
        self.path = path
        if path.is_dir():
            if not checked:
                sharded.require_whole(path)
            content = sharded.read_tree(path, lazily=(WEIGHTS, "optimizer_states"))
        else:
            content = wholefile.read_whole(path, mapped=True, checked=checked)
        of_lightning(content, path)
        own = content.get("lrtrain", {})
        self.step: int = content.get("global_step", 0)
        self.config: str | None = own.get("config")
        self.tokenizer: str | None = own.get("tokenizer")
        imported = own.get("imported") or own.get("ancestor")
        self.ancestor: dict[str, Any] | None = imported and {key: imported[key] for key in ANCESTOR}
        self._tensors: dict[str, Tensor] = content[WEIGHTS]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of each weight -> its shape."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """A weight as a whole, on the CPU."""
        tensor = self._tensors[name]
        if tensor.is_meta:
            tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
            self.read_into({name: tensor})
        return tensor

    def is_sharded(self, name: str) -> bool:
        """Whether `read_into` reads a part of a weight, for a DTensor its own rows, and `read` all of it."""
        return self._tensors[name].is_meta

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fills tensors of the names and shapes of sharded weights, or the local rows of DTensors."""
        sharded.read_into(self.path, {f"{WEIGHTS}/{name}": tensor for name, tensor in tensors.items()})
