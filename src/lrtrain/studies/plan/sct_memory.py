"""The memory of one trained matrix, dense and spectral, as the SCT paper counts it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table

BYTES = 16
"""Of a parameter in float32: weight, gradient and two moments of Adam, 4 each."""

PUBLISHED = {
    "SmolLM2-135M": (576, 1536),
    "SmolLM2-1.7B": (2048, 8192),
    "LLaMA-7B": (4096, 11008),
    "Qwen-27B": (4096, 17408),
    "LLaMA-70B": (8192, 28672),
}
"""m × n of one MLP matrix of each model in the paper's table, whose rank is 32."""

RANK = 32


@dataclass(frozen=True)
class SctMemory:
    """Bytes of a dense and of a spectral matrix, and how many times smaller the latter is."""

    dense: int
    spectral: int

    @property
    def ratio(self) -> float:
        return self.dense / self.spectral


def sct_memory(m: int, n: int, k: int) -> SctMemory:
    """16·m·n bytes dense; 16·k(m + n + 1) as U (m, k), s (k), V (n, k).

    Raises:
        ValueError: k is not between 1 and min(m, n).

    Source: SCT, arXiv 2604.00733.
    """
    if not 1 <= k <= min(m, n):
        raise ValueError(f"the rank of a {m} × {n} matrix is between 1 and {min(m, n)}, got {k}")
    return SctMemory(BYTES * m * n, BYTES * k * (m + n + 1))


def sct_lines(matrix: str | None, rank: int) -> str:
    """The paper's table, or its line for a matrix as `8192x28672`. Raises UserError for one that is none."""
    if matrix is None:
        return sct_table(PUBLISHED)
    match = re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", matrix)
    if match is None:
        raise UserError(f"--matrix {matrix}: give rows and columns, as in 8192x28672")
    try:
        return sct_table({"matrix": (int(match[1]), int(match[2]))}, rank)
    except ValueError as error:
        raise UserError(f"--rank {rank}: {error}") from error


def sct_table(matrices: Mapping[str, tuple[int, int]], rank: int = RANK) -> str:
    """A line a matrix: name -> (m, n); in MB of 10⁶ bytes. Raises ValueError as `sct_memory` does."""
    rows = [["matrix", "m × n", "dense MB", f"SCT MB (rank {rank})", "ratio"]]
    for name, (m, n) in matrices.items():
        found = sct_memory(m, n, rank)
        megabytes = [f"{size / 1e6:.3f}" for size in (found.dense, found.spectral)]
        rows.append([name, f"{m} × {n}", *megabytes, f"{found.ratio:.2f}"])
    return table(rows)
