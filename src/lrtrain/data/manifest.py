"""The manifest of a data set: what it was made from, with what tokenizer, and how much of it there is."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically

FORMAT = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.pt"
PARTS = "parts"
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Chunk:
    """One shard file of a split: `tokens` in it, its size in bytes and its SHA-256."""

    file: str
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The documents of a split, the UTF-8 bytes of their text, and their tokens with one separator a document."""

    documents: int
    bytes: int
    tokens: int
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Documents, bytes and tokens."""
        return self.documents, self.bytes, self.tokens

    @property
    def digest(self) -> str:
        """One hash for the contents of all chunks."""
        return hashlib.sha256("".join(chunk.sha256 for chunk in self.chunks).encode()).hexdigest()

    def blocks(self, length: int) -> int:
        """How many whole blocks of `length` tokens the split has; a block never crosses from one chunk to the next."""
        return sum(chunk.tokens // length for chunk in self.chunks)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. It is written last, so a folder that has one is a whole data set.

    `source` to `max_tokens`, and `formats`, are the request it was made from (`PrepareSpec`), `files` what that named
    (`data/origin.py`); `dtype` is the tokens' type on disk, `uint16` or `int32`; `eot_id` is the token between
    documents.
    """

    source: list[str]
    text_column: str
    tokenizer: str | None
    train_vocab_size: int | None
    val_fraction: float
    max_tokens: int | None
    tokenizer_sha256: str
    vocab_size: int
    eot_id: int
    dtype: str
    train: Split
    val: Split
    formats: list[str] = field(default_factory=list)
    files: list[list[Any]] = field(default_factory=list)
    format: int = FORMAT

    def split(self, name: str) -> Split:
        split: Split = getattr(self, name)
        return split

    def bytes_per_token(self, split: str = "val") -> float:
        """UTF-8 bytes of text per token: bits per byte = nats per token / (ln 2 · bytes per token)."""
        return self.split(split).bytes / self.split(split).tokens

    def save(self, folder: Path) -> None:
        write_atomically(folder / MANIFEST, json.dumps(asdict(self), indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: str) -> "Manifest":
        """The manifest in the folder `path`, local or any fsspec URL. Raises UserError if it is absent or unusable."""
        where = f"{path.rstrip('/')}/{MANIFEST}"
        try:
            text = stores.read(where) if stores.is_remote(path) else Path(where).read_bytes()
        except FileNotFoundError as error:
            raise _absent(path) from error
        except OSError as error:
            raise UserError(f"cannot read {where}: {error.strerror or error}") from error
        try:
            content = json.loads(text)
            if "format" not in content:
                raise UserError(f"{where} is not a manifest of lrtrain prepare: correct data.path")
            if (found := content["format"]) != FORMAT:
                raise UserError(f"{where} has format {found}, this version reads {FORMAT}: prepare the data again")
            for name in SPLITS:
                chunks = [Chunk(**chunk) for chunk in content[name]["chunks"]]
                content[name] = Split(**{**content[name], "chunks": chunks})
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where} is damaged ({error}): delete the folder and prepare it again") from error


def difference(made: Mapping[str, Any], request: Mapping[str, Any]) -> str | None:
    """The first key of `request` whose value in `made` is another, with both values; None if all agree."""
    for key, wanted in request.items():
        if made.get(key) != wanted:
            return f"{key} is {made.get(key)} there and {wanted} in the request"
    return None


def _absent(path: str) -> UserError:
    if (Path(path) / PARTS).exists():
        return UserError(
            f"the data in {path} is not finished: run `lrtrain prepare --merge --out {path}` when all parts are"
        )
    if (Path(path) / PROGRESS).exists():
        return UserError(
            f"the data in {path} is not finished: run the same `lrtrain prepare` again, it goes on where it stopped"
        )
    return UserError(
        f"{path} holds no prepared data ({MANIFEST}): run `lrtrain prepare --out {path} --source …` or set data.prepare"
    )
