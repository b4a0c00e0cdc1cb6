"""Token shards: written as LitData chunks for its `TokensLoader`, and checked against the manifest."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import TokensLoader
from litdata.constants import _TORCH_DTYPES_MAPPING
from litdata.streaming.writer import BinaryWriter

from lrtrain.data.manifest import Chunk, Split
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically

CHUNK_TOKENS = 2**25  # 64 MiB of uint16
CHUNK_BYTES_LIMIT = 4 * CHUNK_TOKENS + 64
AGAIN = "delete the folder and prepare it again, or copy this file again"


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """uint16 where every id of the vocabulary fits into it, else int32."""
    return np.dtype(np.uint16 if vocabulary <= 2**16 else np.int32)


class ShardWriter:
    """Appends documents to one split and writes a chunk whenever enough tokens have come together.

    A chunk holds 2²⁵ tokens, the last one what is left: blocks are shuffled within a chunk, so that a small data set
    is mixed as a whole, and what is left of a chunk after its last whole block is lost. The chunks depend on the
    sequence of documents alone. `state()` and `restore()` carry the writer over an interruption.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self.folder = folder
        self.documents = self.bytes = self.tokens = 0
        self.dtype = dtype
        self._index: dict[str, Any] = {"chunks": [], "config": None}
        self._chunks: list[Chunk] = []
        self._pending = [np.empty(0, dtype)]

    def append(self, tokens: np.ndarray, n_bytes: int) -> None:
        """Add one document: its tokens with their separator, and the UTF-8 bytes of its text."""
        self.documents += 1
        self.bytes += n_bytes
        self.extend(tokens)

    def extend(self, tokens: np.ndarray) -> None:
        """Add tokens of documents that are counted elsewhere."""
        self.tokens += len(tokens)
        self._pending.append(tokens)
        while self.tokens - CHUNK_TOKENS * len(self._chunks) >= CHUNK_TOKENS:
            waiting = np.concatenate(self._pending)
            self._write(waiting[:CHUNK_TOKENS])
            self._pending = [waiting[CHUNK_TOKENS:]]

    def counts(self) -> tuple[int, int, int]:
        """Documents, bytes and tokens so far."""
        return self.documents, self.bytes, self.tokens

    def state(self) -> dict[str, Any]:
        return {
            "counts": self.counts(),
            "index": self._index,
            "chunks": [asdict(chunk) for chunk in self._chunks],
            "pending": torch.from_numpy(np.concatenate(self._pending)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.documents, self.bytes, self.tokens = state["counts"]
        self._index = state["index"]
        self._chunks = [Chunk(**chunk) for chunk in state["chunks"]]
        self._pending = [state["pending"].numpy()]

    def close(self) -> Split:
        """Write what is pending and LitData's index, drop files that belong to neither, and say what there is."""
        if len(rest := np.concatenate(self._pending)):
            self._write(rest)
        split = Split(self.documents, self.bytes, self.tokens, self._chunks)
        # LitData takes `updated_at` for a version in the name of its cache of a remote data set.
        index = {**self._index, "updated_at": split.digest[:16]}
        self.folder.mkdir(exist_ok=True)
        write_atomically(self.folder / "index.json", json.dumps(index, sort_keys=True).encode())
        kept = {"index.json", *(chunk.file for chunk in self._chunks)}
        for stray in self.folder.iterdir():
            if stray.name not in kept:
                shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
        return split

    def _write(self, tokens: np.ndarray) -> None:
        """One chunk with one item: LitData's own writer makes it aside, then it is synced and takes its name."""
        name = f"chunk-{len(self._chunks):05d}.bin"
        path = self.folder / name
        self.folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".writing-") as aside:
            writer = BinaryWriter(aside, chunk_bytes=CHUNK_BYTES_LIMIT, item_loader=TokensLoader())
            writer.add_item(0, torch.from_numpy(tokens))
            (written,) = writer.done()
            (index,) = Path(aside).glob("*.index.json")
            content = json.loads(index.read_bytes())
            write_atomically(path, Path(written).read_bytes())
        (entry,) = content["chunks"]
        self._index = {"chunks": [*self._index["chunks"], {**entry, "filename": name}], "config": content["config"]}
        self._chunks.append(Chunk(name, len(tokens), path.stat().st_size, _sha256(path)))


def read_chunk(folder: Path, chunk: Chunk, dtype: np.dtype[Any]) -> np.ndarray:
    """All tokens of a chunk. Raises UserError if the file is missing or not what `chunk` says."""
    file = folder / chunk.file
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"shard {file} is missing") from error
    if hashlib.sha256(content).hexdigest() != chunk.sha256:
        raise UserError(f"shard {file} is corrupt, its SHA-256 is not that of when it was made")
    return np.frombuffer(content, dtype, offset=len(content) - chunk.tokens * dtype.itemsize)


def check_shards(folder: Path, split: Split, dtype: str, contents: bool) -> None:
    """Compare `folder` with the manifest: LitData's index, the chunks' sizes, with `contents` their SHA-256.

    Raises UserError that names the first file that is missing, truncated or altered.
    """
    check_index(folder, split, dtype)
    for chunk in split.chunks:
        if fault := shard_fault(folder / chunk.file, chunk, contents):
            raise UserError(f"shard {folder / chunk.file} {fault}: {AGAIN}")


def shard_fault(file: Path, chunk: Chunk, contents: bool = True) -> str | None:
    """What is wrong with a shard's file, with `contents` also by its SHA-256; None if it is what the manifest says."""
    if not file.is_file():
        return "is missing"
    if (size := file.stat().st_size) != chunk.bytes:
        return f"is truncated or corrupt, {size} bytes instead of {chunk.bytes}"
    if contents and _sha256(file) != chunk.sha256:
        return "is corrupt, its SHA-256 is not the manifest's"
    return None


def check_index(folder: Path, split: Split, dtype: str) -> None:
    """Compare LitData's index in `folder` with the manifest. Raises UserError if it is another."""
    index = folder / "index.json"
    try:
        content = json.loads(index.read_bytes())
        listed = [(entry["filename"], entry["dim"]) for entry in content["chunks"]]
        kind = _TORCH_DTYPES_MAPPING[int(content["config"]["data_format"][0].partition(":")[2])]
    except FileNotFoundError as error:
        raise UserError(f"{index} is missing: {AGAIN}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{index} is corrupt ({type(error).__name__}: {error}): {AGAIN}") from error
    if kind != getattr(torch, dtype):
        raise UserError(f"{index} says {kind} and the manifest torch.{dtype}: {AGAIN}")
    if listed != [(chunk.file, chunk.tokens) for chunk in split.chunks]:
        raise UserError(f"{index} lists other shards than the manifest: {AGAIN}")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
