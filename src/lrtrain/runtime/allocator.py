"""How the C library treats the memory that tensors on a CPU leave behind."""

import ctypes
import os
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks of any size for the next tensor instead of giving them back to the system.

    A block that was given back costs a page fault every 4 kB when it is mapped again, and a training step on a CPU
    makes thousands of tensors of a few MB and some of the logits' size (docs/log.md). The process stays as large as
    its largest moment.

    Returns:
        Whether it did: not without glibc, nor where the environment sets MALLOC_… or preloads another allocator.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ
    mallopt = None if chosen else _of_glibc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def give_back_freed_memory() -> None:
    """Gives freed blocks back to the system, if glibc holds any: another thread's tensors would not be made in them."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
