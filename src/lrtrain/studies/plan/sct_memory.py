"""The memory of one trained matrix, dense and spectral, as the SCT paper counts it."""

from typing import NamedTuple

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


class SctMemory(NamedTuple):
    """Bytes of a dense and of a spectral matrix, and how many times smaller the latter is."""

    dense: int
    spectral: int

    @property
    def ratio(self) -> float:
        return self.dense / self.spectral


def sct_memory(m: int, n: int, k: int) -> SctMemory:
    """16·m·n bytes dense; 16·k(m + n + 1) as U (m, k), s (k), V (n, k). Source: SCT, arXiv 2604.00733."""
    return SctMemory(BYTES * m * n, BYTES * k * (m + n + 1))


def sct_table() -> str:
    """The paper's table, a line a matrix, in MB of 10⁶ bytes."""
    rows = [["matrix", "m × n", "dense MB", f"SCT MB (rank {RANK})", "ratio"]]
    for name, (m, n) in PUBLISHED.items():
        found = sct_memory(m, n, RANK)
        megabytes = [f"{size / 1e6:.3f}" for size in found]
        rows.append([name, f"{m} × {n}", *megabytes, f"{found.ratio:.2f}"])
    return table(rows)
