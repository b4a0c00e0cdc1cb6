"""Processes that tokenize: the tokens of one encoder, one line for whatever fails, and none that is left over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lrtrain.data import encode
from lrtrain.data.encode import Batch, encode_batches
from lrtrain.data.encoder import Encoder
from lrtrain.data.encoder_processes import EncoderProcesses
from lrtrain.data.preparation import prepare
from lrtrain.data.spec import PrepareSpec
from lrtrain.data.tokenizer import load_tokenizer
from lrtrain.runtime.errors import TemporaryError, UserError
from sources import TEXTS, contents

LONG = "some words " * 3_000_000  # half a minute's work
PROGRAM = """
# Without a main guard, which no process may need.
import signal, sys, time
import numpy as np
from lrtrain.data.encoder import Encoder
from lrtrain.data.encoder_processes import EncoderProcesses
from lrtrain.data.tokenizer import load_tokenizer

signal.signal(signal.SIGUSR1, lambda *_: None)
with EncoderProcesses(Encoder(load_tokenizer(sys.argv[1]), np.dtype(np.uint16)), 2) as processes:
    busy = processes.submit(["some words " * 3_000_000])
    while not processes._started:
        time.sleep(0.01)
    processes.submit(["a"]).result()
    print(*(process.pid for process in processes._started), flush=True)
    sys.stdin.readline()
    print(len(processes.submit(["a"]).result()), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def encoder(tokenizer: str) -> Encoder:
    return Encoder(load_tokenizer(tokenizer), np.dtype(np.uint16))


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_end(processes: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(map(is_there, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_there, processes))


def test_batches_come_in_order_with_the_tokens_of_one_encoder(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHARACTERS_HERE", 0)
    odd = ["", "é 漢 😀", "says <|endoftext|> aloud", "x" * 300_000]
    batches = [Batch(texts, 0, 0, 0) for texts in (odd, *(TEXTS[start : start + 7] for start in range(0, 400, 7)))]
    found = [*encode_batches(batches, encoder, 3)]
    assert [batch for batch, _ in found] == batches
    for batch, tokens in found:
        wanted = encoder.documents(batch.texts)
        assert [ids.tolist() for ids in tokens] == [ids.tolist() for ids in wanted]
        assert {ids.dtype for ids in tokens} == {np.dtype(np.uint16)}


def test_a_process_is_started_when_all_others_are_busy_and_none_for_little_text(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EncoderProcesses(encoder, 4) as processes:
        for _ in range(3):
            processes.submit(["a"]).result()
        assert len(processes._started) == 1
    monkeypatch.setattr(encode, "EncoderProcesses", None)
    assert len([*encode_batches([Batch(TEXTS, 0, 0, 0)] * 3, encoder, 4)]) == 3
    assert not [*encode_batches([], encoder, 4)]


def test_what_a_process_cannot_encode_is_the_error_of_the_encoder(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "<unk>"}
    file.write_text(json.dumps({"version": "1.0", "model": model}))
    encoder = Encoder(load_tokenizer(str(file)), np.dtype(np.uint16))
    with EncoderProcesses(encoder, 1) as processes:
        with pytest.raises(UserError, match="the tokenizer fails on a text") as raised:
            processes.submit(["b"]).result()
        assert "encoder.py" in raised.value.__notes__[0]
        assert processes.submit(["a"]).result()[0].tolist() == [1, 0]


def test_a_killed_process_is_a_line_that_asks_for_the_same_command_which_goes_on(
    tmp_path: Path, source: list[str], tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 8)
    monkeypatch.setattr(encode, "CHARACTERS_HERE", 0)
    monkeypatch.setattr("lrtrain.data.preparation.SAVE_SECONDS", 0.0)
    answered = EncoderProcesses._documents

    def kill_later(self: EncoderProcesses, texts: list[str]) -> list[np.ndarray]:
        if "Document 200:" in texts[0]:
            self._started[0].kill()
            time.sleep(0.1)
        return answered(self, texts)

    spec = PrepareSpec(source, tokenizer=tokenizer, workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(EncoderProcesses, "_documents", kill_later)
        with pytest.raises(TemporaryError) as raised:
            prepare(spec, str(tmp_path / "out"))
    assert "ended by signal 9 (SIGKILL): run the same command again" in str(raised.value)
    prepare(spec, str(tmp_path / "out"))
    prepare(spec, str(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_leaving_ends_processes_at_once_and_frees_their_pipes(encoder: Encoder) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with EncoderProcesses(encoder, 2) as processes:
        waiting = [processes.submit([LONG]) for _ in range(4)]
        while len(processes._started) < 2:
            time.sleep(0.01)
        time.sleep(0.5)  # they have begun
        left = time.monotonic()
    assert time.monotonic() - left < 5
    assert len(processes._started) == 2
    assert all(process.returncode == -signal.SIGKILL for process in processes._started)
    assert all(future.cancelled() or isinstance(future.exception(), TemporaryError) for future in waiting)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_cannot_be_started_is_one_line(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with (
        EncoderProcesses(encoder, 1) as processes,
        pytest.raises(UserError, match=r"cannot start a process that tokenizes \(No such file"),
    ):
        processes.submit(["a"]).result()


@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent_and_heed_no_signal_that_is_for_it(
    tmp_path: Path, tokenizer: str, killed: signal.Signals
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), tokenizer]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as parent:  # type: ignore[call-overload]
        busy = [*map(int, parent.stdout.readline().split())]
        assert len(busy) == 2
        for received in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for process in busy:
                os.kill(process, received)
        os.killpg(parent.pid, signal.SIGUSR1)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "1\n"
        assert all(map(is_there, busy))
        os.killpg(parent.pid, killed) if killed == signal.SIGTERM else parent.kill()
        assert parent.wait(10) == -killed
        assert all_end(busy)
        assert not parent.stderr.read()
