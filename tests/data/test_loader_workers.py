"""The processes that read ahead, and the signals that everybody in a job gets."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lrtrain.data.loader_workers import heed_parent_only

SENT_TO_ALL = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not say who sent a signal")
@pytest.mark.parametrize("sent", SENT_TO_ALL)
def test_a_reader_goes_on_after_a_signal_that_others_send_and_ends_with_its_loader(sent: signal.Signals) -> None:
    before = set(children(os.getpid()))
    read = iter(DataLoader(torch.arange(100), num_workers=1, worker_init_fn=heed_parent_only))
    assert int(next(read)) == 0
    (worker,) = set(children(os.getpid())) - before
    subprocess.run([sys.executable, "-c", f"import os; os.kill({worker}, {int(sent)})"], check=True)
    assert [int(number) for number in read] == list(range(1, 100))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not say who sent a signal")
def test_a_reader_that_is_stuck_ends_when_its_parent_says_so() -> None:
    before = set(children(os.getpid()))
    held = iter(DataLoader(Stuck(), num_workers=1, worker_init_fn=heed_parent_only))
    (worker,) = set(children(os.getpid())) - before
    time.sleep(0.5)
    os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
        os.kill(worker, signal.SIGTERM)  # where it had not begun to listen
    del held


SIGNALED_AT_BIRTH = """
import os, signal, sys, torch
from torch.utils.data import DataLoader
from lrtrain.data.loader_workers import deaf_from_the_start, heed_parent_only

os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), int(sys.argv[1])))
with deaf_from_the_start():
    read = iter(DataLoader(torch.arange(100), num_workers=1, worker_init_fn=heed_parent_only))
assert [int(number) for number in read] == list(range(100))
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "this process hears as before"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not say who sent a signal")
def test_a_reader_goes_on_after_a_signal_that_comes_before_it_has_begun() -> None:
    subprocess.run([sys.executable, "-c", SIGNALED_AT_BIRTH, str(int(signal.SIGTERM))], check=True)


class Stuck(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        time.sleep(600)
        return 0
