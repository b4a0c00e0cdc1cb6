"""Freed memory is kept for the next tensor."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from lrtrain.runtime.allocator import keep_freed_memory

torch.set_num_threads(1)
size = int(sys.argv[1])
kept = keep_freed_memory()
for step in range(60):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(size) for _ in range((32 << 20) // size)]  # freed together: more than glibc keeps by itself
    del parts
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

TOUCHED_PAGES = 50 * 32 * 1024


def faults(size: int = 1 << 20, **environment: str) -> tuple[str, int]:
    """Whether memory is kept, and the page faults of 6.7 GB in tensors of so many float32 numbers."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    run = [sys.executable, "-c", PROGRAM, str(size)]
    kept, count = subprocess.check_output(run, env={**plain, **environment}, text=True).split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
@pytest.mark.parametrize("size", [1 << 20, 1 << 24], ids=["4MB", "64MB"])
def test_tensors_are_made_in_memory_that_others_left(size: int) -> None:
    # Left alone, glibc sometimes keeps what is below 32 MB by itself, and sometimes gives every page back.
    kept, count = faults(size)
    assert kept == "True"
    assert count < TOUCHED_PAGES / 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_a_choice_of_the_environment_stands() -> None:
    assert faults(MALLOC_ARENA_MAX="2")[0] == "False"
