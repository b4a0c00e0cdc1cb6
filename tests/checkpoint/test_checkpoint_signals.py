"""A signal at any moment of a run: it is saved, the exit code tells, and it goes on exactly. Real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import checkpoint_program
from checkpoint_program import Batches, Net, fit, make_trainer
from checkpoint_state import assert_same_state, batches, newest, saved_steps
from forked import FORK
from lrtrain.checkpoint.single_file import read_whole
from moments import At, terminate


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start", "on_train_batch_end"])
def test_a_signal_saves_at_the_next_boundary_and_leaves_with_143(tmp_path, hook):
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "validate": True, "val_check_interval": 6}
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path / "parts", max_steps=20, callbacks=[At(hook, 5, terminate)], **options)
    assert caught.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert saved_steps(tmp_path / "parts") == [3]
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), max_steps=8, **options)
    fit(tmp_path / "whole", max_steps=8, **options)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_train_start", "on_train_end"])
def test_a_signal_where_nothing_is_new_still_leaves_with_143(tmp_path, hook):
    callbacks = [At(hook, 1, terminate)]
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, max_steps=3, validate=True, num_sanity_val_steps=1, callbacks=callbacks)
    assert caught.value.code == 143
    assert saved_steps(tmp_path) == ([3] if hook == "on_train_end" else [])


def test_a_signal_ends_validation_at_once(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[At("on_validation_batch_start", 2, terminate)])
    with pytest.raises(SystemExit) as caught:
        trainer.validate(Net(), Batches(), verbose=False)
    assert caught.value.code == 143


@pytest.mark.parametrize("warning", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_the_warning_of_a_batch_system_saves_and_leaves_with_its_number(tmp_path, warning):
    before = signal.signal(warning, signal.SIG_DFL)
    strike = At("on_before_backward", 5, lambda: os.kill(os.getpid(), warning))
    try:
        with pytest.raises(SystemExit) as caught:
            fit(tmp_path, max_steps=20, callbacks=[strike])
        assert signal.getsignal(warning) is signal.SIG_DFL
    finally:
        signal.signal(warning, before)
    assert caught.value.code == 128 + warning
    assert saved_steps(tmp_path) == [5]


def test_a_warning_that_somebody_ignores_or_hears_is_left_to_him(tmp_path):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append("mine"))
    strike = At("on_before_backward", 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        fit(tmp_path, max_steps=3, callbacks=[strike])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == ["mine"]
    assert saved_steps(tmp_path) == [3]


@pytest.mark.usefixtures("foreground")
def test_ctrl_c_saves_and_leaves_with_130(tmp_path):
    callbacks = [At("on_before_backward", 5, lambda: os.kill(os.getpid(), signal.SIGINT))]
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, max_steps=20, callbacks=callbacks)
    assert caught.value.code == 130
    assert saved_steps(tmp_path) == [5]


PROGRAM = Path(checkpoint_program.__file__)


def start(root: Path, *arguments: str, until: int = 13) -> subprocess.Popen[str]:
    root.mkdir()
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(root), *arguments], stderr=subprocess.PIPE, text=True)
    wait_for_batches(root, until, lambda: process.poll() is not None and process.communicate())
    return process


def wait_for_batches(root: Path, count: int, ended: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not (root / "batches.txt").exists() or len(batches(root)) < count:
        outcome = ended()
        assert not outcome, outcome
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_terminated_process_ends_with_143_and_its_run_goes_on_exactly(tmp_path):
    process = start(tmp_path / "parts", "--accumulate", "3")
    process.terminate()
    process.terminate()  # as `timeout` and batch systems do: the process, then its group
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 143, told
    assert "SIGTERM: finishing this step" in told
    (step,) = saved_steps(tmp_path / "parts")
    options: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": step + 5}
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), **options)
    fit(tmp_path / "whole", **options)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


def test_a_second_signal_ends_at_once_however_long_the_step(tmp_path):
    process = FORK.Process(target=fit, args=(tmp_path / "run", partial(Net, pause=30.0)), kwargs={"max_steps": 10})
    process.start()
    try:
        wait_for_batches(tmp_path / "run", 1, lambda: not process.is_alive())
        process.terminate()
        time.sleep(1.2)
        assert process.is_alive()
        process.terminate()
        process.join(10)
        assert process.exitcode == -signal.SIGTERM
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_two_processes_agree_when_one_of_them_is_signalled(tmp_path):
    process = start(tmp_path / "parts", "--devices", "2")
    (child,) = (int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(child, signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 143, told
    checkpoint = read_whole(newest(tmp_path / "parts"))
    assert len(checkpoint["lrtrain"]["rng"]) == 2
    assert checkpoint["global_step"] == saved_steps(tmp_path / "parts")[0]
