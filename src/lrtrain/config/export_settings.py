"""The group `export` of a configuration: what a run leaves for transformers when it has ended."""

from typing import Literal

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.units import read_memory

SMALLEST_SHARD = 1e6


class Export:
    """At the end of training, write the last checkpoint for transformers, too: the folder `step-00000500.hf` beside it.

    Args:
        format: `merged`, a stock Llama with dense weights; `factorized`, which keeps A and B, or U, s and V, and a file
            of code that computes with them; null writes nothing. `lrtrain export` does the same later.
        dtype: Of the weights that are written.
        shard_size: Largest size of one file of weights, as 5GB.
        license: What the model card says, as apache-2.0; null leaves it open.
        register: Name of a model in MLflow's registry, of which the folder, merged, becomes a version; null for none.
    """

    def __init__(
        self,
        format: Literal["merged", "factorized"] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        shard_size: str = "5GB",
        license: str | None = None,
        register: str | None = None,
    ) -> None:
        self.format = format
        self.dtype = dtype
        self.shard_bytes = read_shard_size("export.shard_size", shard_size)
        self.license = license
        self.register = register
        if register is not None and format != "merged":
            raise UserError("export.register: MLflow's registry gets a stock Llama: set export.format to merged")


def read_shard_size(key: str, text: str) -> float:
    """Bytes of `5GB`. Raises UserError where that is no amount, or less than a megabyte."""
    size = read_memory(key, text)
    if size < SMALLEST_SHARD:
        raise UserError(f"{key} {text}: give at least 1MB")
    return size
