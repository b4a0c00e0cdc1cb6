"""Checkpoints: whole or recognised, at step boundaries, and bit for bit on resume. Real Trainers, files, signals."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from checkpoint_program import BATCHES, Batches, Net, fit, make_trainer
from lrtrain.callbacks.checkpoint_folder import newest_whole, resolve_ckpt_path, step_path, steps_in
from lrtrain.callbacks.checkpoint_io import check_architecture
from lrtrain.callbacks.checkpoints import Checkpoints
from lrtrain.callbacks.wholefile import fault, read_whole, write_whole
from lrtrain.errors import UserError

PROGRAM = Path(__file__).with_name("checkpoint_program.py")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def saved_steps(root: Path) -> list[int]:
    return sorted(steps_in(root / "checkpoints"))


def newest(root: Path) -> Path:
    path, passed_over = newest_whole(root / "checkpoints")
    assert path is not None
    assert passed_over == []
    return path


def batches(root: Path) -> list[int]:
    return [int(line) for line in (root / "batches.txt").read_text().split()]


def expected_batches(count: int) -> list[int]:
    return [1000 * (i // BATCHES) + i % BATCHES + 1 for i in range(count)]


def assert_same_state(one: Path, other: Path) -> None:
    """Weights, optimizer, scheduler, data position and random state, bit for bit."""
    a, b = read_whole(one), read_whole(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    assert a["loops"]["fit_loop"]["state_dict"] == b["loops"]["fit_loop"]["state_dict"]
    assert torch.equal(a["lrtrain"]["rng"][0]["torch"], b["lrtrain"]["rng"][0]["torch"])


class At(pl.Callback):
    """Does something once, at one moment of a run."""

    def __init__(self, hook: str, count: int, action: Any) -> None:
        self.left, self.action = count, action
        setattr(self, hook, self._act)

    def _act(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("struck")


def test_a_written_checkpoint_is_whole_and_torch_reads_it_by_itself(tmp_path):
    path = tmp_path / "sub" / "a.ckpt"
    write_whole({"weights": torch.arange(1000.0), "names": ["x", (1, None)]}, path)
    assert fault(path) is None
    assert torch.equal(read_whole(path)["weights"], torch.arange(1000.0))
    assert torch.load(path, weights_only=True, mmap=True)["names"] == ["x", (1, None)]
    assert os.listdir(path.parent) == ["a.ckpt"]


def test_any_changed_byte_and_any_cut_is_detected(tmp_path):
    path = tmp_path / "a.ckpt"
    write_whole({"weights": torch.arange(40.0)}, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert fault(path), f"byte {position} changed unseen"
        path.write_bytes(whole[:position])
        assert fault(path), f"cut at {position} unseen"


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "there is no such file"), (b"", "it is empty"), (b"name: not a checkpoint\n", "it is not a checkpoint")],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path, content, why):
    path = tmp_path / "a.ckpt"
    if content is not None:
        path.write_bytes(content)
    for use in (lambda: resolve_ckpt_path(str(path), tmp_path), lambda: read_whole(path)):
        with pytest.raises(UserError, match=why) as caught:
            use()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_without_checksum_is_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="no checksum"):
        resolve_ckpt_path(str(tmp_path / "a.ckpt"), tmp_path)


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['callbacks'\]\['where'\] is a pathlib"):
        write_whole({"callbacks": {"where": Path("x")}}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_cannot_run_code_on_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("lrtrain.callbacks.wholefile._foreign", lambda *_: None)
    write_whole({"code": os.system}, tmp_path / "a.ckpt")
    monkeypatch.undo()
    with pytest.raises(UserError, match="Weights only load failed"):
        read_whole(tmp_path / "a.ckpt")


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoints(tmp_path):
    fit(tmp_path, max_steps=5)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)  # the kernel refuses to write on: EFBIG, as ENOSPC elsewhere
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write checkpoint .*step-00000008\.ckpt.*MB are free") as caught:
            fit(tmp_path, ckpt_path=newest(tmp_path), max_steps=20, every=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000005.ckpt"]
    assert fault(newest(tmp_path)) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_kernels_no_space_left_is_named_with_what_is_needed(tmp_path):
    (tmp_path / "a.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"{os.strerror(errno.ENOSPC)} \(it needs 4\.0 MB"):
        write_whole({"weights": torch.zeros(1_000_000)}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write checkpoint"):
        fit(tmp_path, max_steps=1)


def test_last_passes_over_the_truncated_newest_and_says_so(tmp_path, capsys):
    fit(tmp_path, max_steps=9, every=3)
    broken = step_path(tmp_path / "checkpoints", 9)
    os.truncate(broken, broken.stat().st_size // 2)
    path = resolve_ckpt_path("last", tmp_path)
    assert path == step_path(tmp_path / "checkpoints", 6)
    told = capsys.readouterr().err
    assert f"passed over {broken}: it is cut short" in told
    assert f"continuing from {path}" in told


def test_last_says_plainly_when_there_is_none(tmp_path, capsys):
    assert resolve_ckpt_path("last", tmp_path) is None
    assert f"no checkpoint under {tmp_path / 'checkpoints'}: starting from step 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="no checkpoint under"):
        resolve_ckpt_path("last", tmp_path, required=True)
    assert resolve_ckpt_path(None, tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    fit(tmp_path, max_steps=11, every=2, keep=2)
    assert saved_steps(tmp_path) == [10, 11]


def test_going_on_from_an_older_one_puts_the_newer_aside_and_sweeps_partial_files(tmp_path):
    fit(tmp_path, max_steps=6, every=2)
    (tmp_path / "checkpoints" / "step-00000008.ckpt.partial").write_bytes(b"half")
    fit(tmp_path, ckpt_path=step_path(tmp_path / "checkpoints", 2), max_steps=5, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "step-00000002.ckpt",
        "step-00000004.ckpt.aside",
        "step-00000005.ckpt",
        "step-00000006.ckpt.aside",
    ]


@pytest.mark.parametrize("arguments", [{"every_n_steps": 0}, {"keep": 0}, {"keep": -2}])
def test_arguments_out_of_range_are_named(arguments):
    with pytest.raises(UserError, match=f"checkpoints.{next(iter(arguments))} is"):
        Checkpoints(**arguments)


def test_it_holds_the_runs_configuration_and_tokenizer(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    fit(tmp_path, max_steps=1)
    own = read_whole(newest(tmp_path))["lrtrain"]
    assert own["config"] == "seed: 0\n"
    assert own["tokenizer"] is None
    assert set(own) == {"version", "config", "tokenizer", "rng"}


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_command_refuses_a_damaged_checkpoint_and_another_architecture(tmp_path, stage):
    fit(tmp_path, max_steps=1)
    path = newest(tmp_path)
    Net.test_step = Net.predict_step = Net.validation_step
    run = getattr(make_trainer(tmp_path / "other", max_steps=2), stage)
    with pytest.raises(UserError, match=r"net\.0\.weight is \(16, 8\), the model's is \(24, 8\)") as caught:
        run(Net(hidden=24), Batches(), ckpt_path=path)
    assert str(path) in str(caught.value)
    os.truncate(path, 5000)
    with pytest.raises(UserError, match="cut short at 5000 bytes"):
        run(Net(), Batches(), ckpt_path=path)


def test_a_parameter_that_one_side_lacks_is_named():
    dense, deeper = torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.Linear(2, 3))
    with pytest.raises(UserError, match=r"lacks the model's 0\.weight \(3, 2\) \(it has weight \(3, 2\)\)"):
        check_architecture({"state_dict": dense.state_dict()}, deeper, "a.ckpt")
    with pytest.raises(UserError, match=r"it has bias \(3,\), which the model lacks"):
        check_architecture({"state_dict": dense.state_dict()}, torch.nn.Linear(2, 3, bias=False), "a.ckpt")
    check_architecture({"state_dict": dense.state_dict()}, torch.nn.Linear(2, 3, bias=False), "a.ckpt", strict=False)


@pytest.mark.parametrize("stop", [7, BATCHES, 13])
@pytest.mark.parametrize("validate", [False, True])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, stop, validate):
    options: dict[str, Any] = {"validate": validate, "val_check_interval": 5 if validate else None}
    fit(tmp_path / "whole", max_steps=26, **options)
    fit(tmp_path / "parts", max_steps=stop, **options)
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), max_steps=26, **options)
    assert batches(tmp_path / "parts") == batches(tmp_path / "whole") == expected_batches(26)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


def test_validation_changes_nothing_in_training(tmp_path):
    fit(tmp_path / "with", max_steps=12, validate=True, val_check_interval=2)
    fit(tmp_path / "without", max_steps=12)
    assert_same_state(newest(tmp_path / "with"), newest(tmp_path / "without"))


@pytest.mark.parametrize("stopper", ["max_epochs", "should_stop in validation"])
def test_a_run_that_ends_otherwise_can_be_continued_exactly(tmp_path, stopper):
    options: dict[str, Any] = {"validate": True, "val_check_interval": 4, "accumulate_grad_batches": 2}
    fit(tmp_path / "whole", max_steps=12, **options)
    if stopper == "max_epochs":
        fit(tmp_path / "parts", max_epochs=1, **options)
    else:
        stop = At("on_validation_end", 2, lambda: None)
        stop.action = lambda: setattr(trainer, "should_stop", True)
        pl.seed_everything(0, verbose=False)
        trainer = make_trainer(tmp_path / "parts", callbacks=[stop], val_check_interval=4, accumulate_grad_batches=2)
        (tmp_path / "parts").mkdir()
        trainer.fit(Net(), Batches(tmp_path / "parts" / "batches.txt"), Batches())
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), max_steps=12, **options)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


def test_a_full_disk_does_not_hide_the_exception_that_ended_the_run(tmp_path):
    def strike() -> None:
        (tmp_path / "checkpoints").write_text("a file where the folder should be")
        fail()

    with pytest.raises(RuntimeError, match="struck"), pytest.warns(UserWarning, match="cannot write checkpoint"):
        fit(tmp_path, max_steps=20, callbacks=[At("on_train_batch_start", 5, strike)])


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_validation_batch_start"])
def test_an_exception_between_updates_saves_the_last_boundary(tmp_path, hook):
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "validate": True, "val_check_interval": 3}
    with pytest.raises(RuntimeError, match="struck"):
        fit(tmp_path / "parts", max_steps=20, callbacks=[At(hook, 8, fail)], **options)
    assert saved_steps(tmp_path / "parts") == [1 if hook == "on_validation_batch_start" else 3]
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), max_steps=8, **options)
    fit(tmp_path / "whole", max_steps=8, **options)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_an_exception_inside_an_update_saves_nothing(tmp_path, hook):
    class Struck(Net):
        pass

    def strike(self: Net, *_: Any) -> None:
        if self.trainer.global_step == 4:
            fail()

    setattr(Struck, hook, strike)
    with pytest.raises(RuntimeError, match="struck"), pytest.warns(UserWarning, match="inside the update after step 4"):
        fit(tmp_path, Struck, max_steps=20, every=3)
    assert saved_steps(tmp_path) == [3]


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


def start(root: Path, *arguments: str, until: int = 13) -> subprocess.Popen[str]:
    root.mkdir()
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(root), *arguments], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (root / "batches.txt").exists() and len(batches(root)) >= until, process)
    return process


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_saves_and_leaves_with_130(tmp_path):
    callbacks = [At("on_before_backward", 5, lambda: os.kill(os.getpid(), signal.SIGINT))]
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, max_steps=20, callbacks=callbacks)
    assert caught.value.code == 130
    assert saved_steps(tmp_path) == [5]


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
    process = start(tmp_path / "run", "--pause", "30", until=1)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


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
