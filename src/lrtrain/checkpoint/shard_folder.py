"""Checkpoints as a folder that all processes of a sharded run write together: no Lightning, only a file format.

`meta.pt` is the checkpoint as one process would write it (`single_file`), but with meta tensors in place of the sharded
ones. Their numbers lie beside it in torch's distributed format (`__<rank>_0.distcp`, `.metadata`), each under its path
in the checkpoint (`state_dict/decoder.norm.weight`). `meta.pt` knows size and sha256 of every file, and the folder gets
its name when all of them are on disk: it is whole or recognizably not.
"""

import hashlib
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from lrtrain.checkpoint import single_file as wholefile
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import fsync_folder

META, INDEX = "meta.pt", ".metadata"
FILES = "shards"
"""Key of `meta.pt` with {file name: [bytes, sha256]}."""
_INDEX_NAMES = {
    "torch.Size",
    "torch.serialization._get_layout",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "pathlib.PosixPath",
    "pathlib.Path",
}


def write_sharded(checkpoint: Mapping[str, Any], path: Path, group: dist.ProcessGroup | None = None) -> None:
    """Writes a checkpoint whose DTensors are spread over the processes; every process calls it.

    Args:
        checkpoint: What one process would write, with DTensors in it.
        path: The folder.
        group: All processes, in a group of its own where another thread has collectives at the same time.

    Raises:
        UserError: on every process alike, where the disk of one is full or refuses; nothing is left under `path`.
    """
    shards: dict[str, Any] = {}

    def take_out(where: str, tensor: Tensor) -> Tensor:
        shards[where] = tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    tree = _replaced(checkpoint, "", lambda tensor: isinstance(tensor, DTensor), take_out)
    partial = path.with_name(path.name + wholefile.PARTIAL)
    rank = dist.get_rank()
    _together(lambda: _clear(partial), path, group, rank == 0)
    parts = _together(lambda: _save(shards, partial, rank, group), path, group)
    files = {name: identity for part in parts for name, identity in part.items()}
    _together(lambda: _finish({**tree, FILES: files}, partial, path), path, group, rank == 0)


def fault(path: Path) -> str | None:
    """Why a file or folder is not a whole checkpoint, in a few words, or None if it is; reads all of it once."""
    if not path.is_dir():
        return wholefile.fault(path)
    if not (path / META).exists():
        return f"it is a folder without {META}, not a checkpoint"
    if why := wholefile.fault(path / META):
        return f"its {META}: {why}"
    for name, identity in wholefile.read_whole(path / META).get(FILES, {}).items():
        try:
            if (path / name).stat().st_size != identity[0]:
                return f"its {name} is cut short"
            if _identity(path / name) != identity:
                return f"the bytes of its {name} do not match their checksum"
        except FileNotFoundError:
            return f"its {name} is missing"
        except OSError as error:
            return f"its {name} cannot be read ({error.strerror})"
    return None


def require_whole(path: Path) -> None:
    """Raises UserError unless a file or folder is a whole checkpoint; reads all of it once."""
    if why := fault(path):
        raise UserError(f"cannot use checkpoint {path}: {why}; pass another one, or 'last' for the newest whole one")


def digest(path: Path) -> str:
    """The sha256 by which a whole checkpoint knows itself: of a folder's, that of the file that knows the others."""
    return wholefile.digest(path / META if path.is_dir() else path)


def read(path: Path, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
    """Reads a file onto `map_location`, or a folder onto the CPU, after its checksums were compared.

    Raises:
        UserError: it is not a whole checkpoint of lrtrain.
    """
    if not path.is_dir():
        return wholefile.read_whole(path, map_location, weights_only)
    require_whole(path)
    return read_tree(path)


def read_weights(path: Path) -> dict[str, Any]:
    """A checkpoint without its optimizer states, on the CPU: those of a file stay there, those of a folder unread.

    Raises:
        UserError: it is not a whole checkpoint of lrtrain.
    """
    if not path.is_dir():
        checkpoint = wholefile.read_whole(path, mapped=True)
    else:
        require_whole(path)
        checkpoint = read_tree(path, lazily=("optimizer_states",))
    return {key: value for key, value in checkpoint.items() if key != "optimizer_states"}


def read_tree(path: Path, lazily: tuple[str, ...] = ()) -> dict[str, Any]:
    """The checkpoint in a folder as one process would have written it, on the CPU.

    Args:
        path: The folder.
        lazily: Top-level keys whose sharded tensors stay on meta, to be filled by `read_into`.

    Raises:
        UserError: the folder is not a whole checkpoint.
    """
    tree = wholefile.read_whole(path / META)
    if tree.pop(FILES, None) is None:
        raise UserError(f"cannot use checkpoint {path}: lrtrain did not write it; pass one of `lrtrain fit`")
    wanted: dict[str, Tensor] = {}

    def make(where: str, meta: Tensor) -> Tensor:
        wanted[where] = torch.empty(meta.shape, dtype=meta.dtype)
        return wanted[where]

    for key in [key for key in tree if key not in lazily]:
        tree[key] = _replaced(tree[key], key, lambda tensor: tensor.is_meta, make)
    read_into(path, wanted)
    return tree


def read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills tensors, or this process's part of DTensors, from the shards under the same paths; no collective.

    Raises:
        UserError: something is missing in the shards, or is of another shape.
    """
    if not tensors:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process.*")
        try:
            dcp.load(dict(tensors), storage_reader=_Reader(path), no_dist=True)
        except CheckpointException as error:
            raise UserError(f"cannot use checkpoint {path}: {_first_line(error)}; pass another one") from error


def _together(act: Callable[[], Any], path: Path, group: dist.ProcessGroup | None, here: bool = True) -> list[Any]:
    """Runs `act` where `here` is true and gathers the results; an error on one process is a UserError on all."""
    result, error = None, None
    try:
        if here:
            result = act()
    except UserError as caught:
        error = str(caught)
    except (OSError, CheckpointException) as caught:
        error = f"cannot write checkpoint {path}: {_first_line(caught)}; make room or set --runs to another disk"
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result, error), group=group)
    if errors := [error for _, error in outcomes if error]:
        raise UserError(errors[0])
    return [result for result, _ in outcomes]


def _clear(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _save(shards: dict[str, Any], partial: Path, rank: int, group: dist.ProcessGroup | None) -> dict[str, list[Any]]:
    dcp.save(shards, storage_writer=dcp.FileSystemWriter(partial, sync_files=True), process_group=group)
    return {file.name: _identity(file) for file in partial.glob(f"__{rank}_*")}


def _finish(tree: dict[str, Any], partial: Path, path: Path) -> None:
    tree[FILES][INDEX] = _identity(partial / INDEX)
    wholefile.write_whole(tree, partial / META)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    partial.rename(path)
    fsync_folder(path.parent)


def _identity(file: Path) -> list[Any]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def _replaced(node: Any, where: str, wanted: Callable[[Tensor], bool], make: Callable[[str, Tensor], Tensor]) -> Any:
    """A copy of nested containers in which every tensor that is wanted is what `make(its path, it)` returns."""
    if isinstance(node, Tensor):
        return make(where, node) if wanted(node) else node
    if isinstance(node, Mapping):
        return {key: _replaced(item, f"{where}/{key}" if where else key, wanted, make) for key, item in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_replaced(item, f"{where}/{index}", wanted, make) for index, item in enumerate(node))
    return node


def _first_line(error: BaseException) -> str:
    """What went wrong on the first of the processes where something did."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


class _Reader(dcp.FileSystemReader):
    """Reads the index, which is a pickle, without letting it run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / INDEX).open("rb") as file:
            return _Index(file).load()


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        plain = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if plain or f"{module}.{name}" in _INDEX_NAMES:
            return super().find_class(module, name)
        raise UserError(f"cannot use a checkpoint whose {INDEX} names {module}.{name}")
