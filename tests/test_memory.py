"""Freed memory is kept for the next tensor."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from lrtrain.memory import keep_freed_memory

torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for step in range(60):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(1 << 20) for _ in range(4)]
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> tuple[str, int]:
    """Whether memory is kept, and the page faults of 200 tensors of 4 MB."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    run = [sys.executable, "-c", PROGRAM, mode]
    kept, count = subprocess.check_output(run, env={**plain, **environment}, text=True).split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_tensors_are_made_in_memory_that_others_left() -> None:
    _, without = faults("leave")
    kept, with_it = faults("keep")
    assert kept == "True"
    assert with_it < without / 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_a_choice_of_the_environment_stands() -> None:
    assert faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
