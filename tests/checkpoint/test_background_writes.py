"""A checkpoint that is written while training goes on: exact, whole or absent, never two at once, no error lost."""

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import toy
from checkpoint_program import Net, fit
from checkpoint_state import assert_same_state, newest, saved_steps
from commandline import RECIPE, arguments
from forked import FORK
from lrtrain.checkpoint import single_file
from lrtrain.checkpoint.background import on_host
from lrtrain.checkpoint.saver import Saver
from lrtrain.checkpoint.single_file import read_whole, write_whole
from lrtrain.runtime.errors import UserError
from moments import At, fail, terminate
from ranks import command_on_ranks


class Held:
    """`write_whole` that waits before it writes until it is let go, and counts how many are at it at once."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[str] = []
        self.at_once = self.most = 0

    def __call__(self, checkpoint: Any, path: Path) -> None:
        self.begun.append(path.name)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        if threading.current_thread() is not threading.main_thread():
            assert self.go.wait(60)
        write_whole(checkpoint, path)
        self.at_once -= 1


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    writes = Held()
    monkeypatch.setattr(single_file, "write_whole", writes)
    yield writes
    writes.go.set()


def test_steps_are_taken_while_it_is_written_and_it_holds_the_step_that_it_is_of(tmp_path: Path, held: Held) -> None:
    seen: list[list[int]] = []

    def look() -> None:
        seen.append(saved_steps(tmp_path / "here"))
        held.go.set()

    fit(tmp_path / "here", max_steps=9, every=4, keep=-1, callbacks=[At("on_before_backward", 8, look)])
    assert seen == [[]]  # three more steps, and step 4 is not there yet
    assert saved_steps(tmp_path / "here") == [4, 8, 9]
    held.go.set()
    for step in (4, 8, 9):
        fit(tmp_path / f"{step}", max_steps=step)
        assert_same_state(tmp_path / f"here/checkpoints/step-{step:08d}.ckpt", newest(tmp_path / f"{step}"))


def test_two_are_never_written_at_once_and_the_oldest_goes_when_its_successor_is_whole(
    tmp_path: Path, held: Held
) -> None:
    kept: list[list[int]] = []
    callbacks = [At("on_before_backward", 6, lambda: kept.append(saved_steps(tmp_path)))]
    threading.Timer(0.5, held.go.set).start()  # the save of step 6 waits for it
    fit(tmp_path, max_steps=12, every=3, keep=1, callbacks=callbacks)
    assert held.most == 1
    assert kept == [[]]
    assert held.begun == [f"step-{step:08d}.ckpt" for step in (3, 6, 9, 12)]
    assert saved_steps(tmp_path) == [12]


def test_off_it_is_there_when_the_next_step_begins(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    look = At("on_before_backward", 4, lambda: seen.append(saved_steps(tmp_path)))
    fit(tmp_path, max_steps=4, every=3, callbacks=[look], asynchronous=False)
    assert seen == [[3]]


@pytest.mark.parametrize(("how", "what"), [(terminate, SystemExit), (fail, RuntimeError)])
def test_whoever_leaves_waits_for_it_and_saves_where_he_is(
    tmp_path: Path, held: Held, how: Any, what: type[BaseException]
) -> None:
    def strike() -> None:
        threading.Timer(0.3, held.go.set).start()
        how()

    with pytest.raises(what):
        fit(tmp_path, max_steps=20, every=4, keep=-1, callbacks=[At("on_before_backward", 6, strike)])
    assert saved_steps(tmp_path) == ([4, 6] if how is terminate else [4, 5])
    assert sorted(os.listdir(tmp_path / "checkpoints"))[-1].endswith(".ckpt")


def test_a_disk_that_is_full_ends_the_run_at_the_next_boundary_with_one_line(
    tmp_path: Path, held: Held, recwarn: pytest.WarningsRecorder
) -> None:
    fit(tmp_path, max_steps=5)
    held.go.set()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    ended: list[int] = []
    writer = At("on_before_backward", 4, lambda: [t.join() for t in threading.enumerate() if "writer" in t.name])
    after = At("on_before_backward", 5, lambda: ended.append(1))  # step 10, which follows that boundary
    try:
        with pytest.raises(UserError, match=r"cannot write checkpoint .*step-00000008\.ckpt.*MB are free") as caught:
            fit(tmp_path, ckpt_path=newest(tmp_path), max_steps=20, every=8, callbacks=[writer, after])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert ended == []
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000005.ckpt"]
    assert [str(w.message) for w in recwarn if "cannot write" in str(w.message)] == []  # nor tried once more


def test_killed_while_it_is_written_the_one_before_is_there(tmp_path: Path) -> None:
    process = FORK.Process(target=_stuck_in_the_second, args=(tmp_path,))
    process.start()
    end = time.monotonic() + 60
    while not list(tmp_path.glob("checkpoints/step-00000006.ckpt.partial")):
        assert time.monotonic() < end
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(30)
    assert saved_steps(tmp_path) == [3]
    fit(tmp_path, ckpt_path=newest(tmp_path), max_steps=6)
    fit(tmp_path / "whole", max_steps=6)
    assert_same_state(newest(tmp_path), newest(tmp_path / "whole"))


def _stuck_in_the_second(root: Path) -> None:
    def save(*arguments: Any) -> None:
        if list(root.glob("checkpoints/*.ckpt")):
            arguments[1].file.write(b"half of it")
            time.sleep(600)
        torch_save(*arguments)

    torch_save, torch.save = torch.save, save
    fit(root, lambda: Net(pause=0.005), max_steps=100_000, every=3, keep=1)


def test_the_copy_makes_the_same_file_as_what_it_was_made_of(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tied = {"a": base.view(3, 4), "b": base.view(3, 4).t(), "part": base[4:], "none": torch.empty(0), "meta": [None, 1]}
    tree = {"state_dict": tied, "rng": [(3, tuple(range(5)), torch.tensor(7))], "half": torch.ones(2).bfloat16()}
    copy = on_host(tree, [])
    write_whole(tree, tmp_path / "one.ckpt")
    write_whole(copy, tmp_path / "one copied.ckpt")
    base.zero_()
    read = [read_whole(path) for path in (tmp_path / "one.ckpt", tmp_path / "one copied.ckpt")]
    assert copy["state_dict"]["a"].sum() == 66
    assert copy["state_dict"]["a"].data_ptr() == copy["state_dict"]["b"].data_ptr()
    assert copy["state_dict"]["b"].stride() == (1, 4)
    assert str(read[0]) == str(read[1])
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert abs(sizes[0] - sizes[1]) < 200  # but for the names inside the archive


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_one_process_cannot_write_ends_all_of_them_with_one_line(strategy: str, tmp_path: Path) -> None:
    shards = toy.shards(tmp_path)
    more = ["--config", str(RECIPE.parent / f"parallel/{strategy}.yaml"), "--checkpoints.every_n_steps=2"]
    more += ["--trainer.callbacks=background_faults.NoRoom"]
    outcomes = command_on_ranks(2, ["fit", *arguments(shards, tmp_path / "runs", *more, steps=30)])
    assert [code for code, _, _ in outcomes] == [2, 2], outcomes
    told = "".join(err for _, _, err in outcomes)
    assert told.count("lrtrain: error: cannot write checkpoint") == 1
    folder = tmp_path / "runs/quickstart/0001/checkpoints"
    assert [path.name for path in folder.glob("*.ckpt")] == ["step-00000002.ckpt"]


def test_a_lost_process_is_not_warned_of_beside_the_line_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    saver = Saver(L.Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False), keep=1)
    gloo = RuntimeError("[x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation")
    full = UserError("cannot write step-00000002.ckpt: no space left on device")
    for error, lost in ((gloo, True), (gloo, False), (full, True)):
        monkeypatch.setattr(saver._writer, "wait", lambda error=error: error)
        saver.close(lost)
    said = [str(one.message) for one in recwarn if one.category is UserWarning and one.filename.endswith("saver.py")]
    assert said == [str(gloo), str(full)]
