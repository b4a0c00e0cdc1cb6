"""Text to batches: documents, tokenizer, shards, manifest and the DataModule that streams them.

Names are imported when first used, so that a command which only reads a manifest does not load Lightning.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "DocumentFormat": "formats",
    "Manifest": "manifest",
    "PrepareSpec": "spec",
    "load_tokenizer": "tokenizer",
    "TokenDataModule": "datamodule",
    "Weighted": "mix",
}
__all__ = ["DocumentFormat", "Manifest", "PrepareSpec", "TokenDataModule", "Weighted", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
