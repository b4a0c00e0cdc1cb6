"""Weights as safetensors files of a bounded size, one tensor in memory at a time.

The package `safetensors` writes a file from tensors that are all there at once, which would be a second copy of the
weights. The format is a header of known length, then the tensors one after another: https://github.com/huggingface/safetensors.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lrtrain.runtime.long_work import LongWork

INDEX = "model.safetensors.index.json"
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Entry:
    """A tensor that is yet to be made: its name, its shape, and `make`, which is called once, when it is written."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def write_shards(entries: Sequence[Entry], dtype: torch.dtype, folder: Path, most: float) -> list[str]:
    """Writes `model.safetensors`, or numbered shards of at most `most` bytes of tensors and their index.

    A tensor that is larger than that has a shard of its own.

    Returns:
        The names of the shards.

    Raises:
        OSError: the disk is full or refuses.
        ValueError: a tensor is not of the shape that was said, or holds no finite numbers in this dtype.
    """
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        size = _size(entry, dtype)
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    count = len(shards)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    total = sum(_size(entry, dtype) for entry in entries)
    with LongWork("writing weights", total / 1e6, "MB") as work:
        for name, shard in zip(names, shards, strict=True):
            _write(shard, dtype, folder / name, work)
    if count > 1:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return names


def _size(entry: Entry, dtype: torch.dtype) -> int:
    return prod(entry.shape) * dtype.itemsize


def _write(entries: Sequence[Entry], dtype: torch.dtype, file: Path, work: LongWork) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + _size(entry, dtype)
        header[entry.name] = {"dtype": NAMES[dtype], "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin aligned
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.make().detach().to("cpu", dtype).contiguous()
            if tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry.name} is {tuple(tensor.shape)}, expected {entry.shape}")
            if not tensor.isfinite().all():
                raise ValueError(f"{entry.name} holds NaN, infinities or numbers beyond {dtype}".replace("torch.", ""))
            out.write(tensor.flatten().view(torch.uint8).numpy().data)
            work.advance(_size(entry, dtype) / 1e6)
        out.flush()
        os.fsync(out.fileno())
