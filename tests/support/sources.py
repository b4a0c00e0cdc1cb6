"""Four hundred documents in three files, and what a preparation made of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from litdata import StreamingDataset, TokensLoader

from lrtrain.data.manifest import Manifest
from lrtrain.data.tokenizer import load_tokenizer

TEXTS = [f"Document {i}: " + " ".join(f"word{(i * j) % 97}" for j in range(60)) for i in range(400)]


def write_sources(folder: Path) -> None:
    """Two JSON-lines files and a parquet file, 400 documents in all, two of them twice."""
    folder.mkdir()
    for name, texts in (("a.jsonl", TEXTS[:150]), ("b.jsonl", TEXTS[150:300] + TEXTS[:2])):
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": TEXTS[300:]}), folder / "c.parquet", row_group_size=30)


def contents(folder: Path) -> dict[str, str]:
    """Every file of a prepared folder with the hash of what it holds."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def decoded(folder: Path, split: str, separator: str = "<|endoftext|>") -> list[str]:
    """The documents of a split, read by LitData and cut at the end-of-text token."""
    manifest = Manifest.load(str(folder))
    blocks = StreamingDataset(str(folder / split), item_loader=TokensLoader(block_size=1))
    tokens = np.concatenate([block.numpy() for block in blocks]).tolist()
    assert tokens[-1] == manifest.eot_id
    text = load_tokenizer(str(folder)).decode(tokens, skip_special_tokens=False)
    return text.split(separator)[:-1]
