"""One checkpoint file: whole or recognized as broken, and safe to read."""

import errno
import os
from pathlib import Path

import pytest
import torch

from lrtrain.checkpoint.directory import resolve_ckpt_path
from lrtrain.checkpoint.single_file import fault, read_whole, write_whole
from lrtrain.runtime.errors import UserError


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
    monkeypatch.setattr("lrtrain.checkpoint.single_file._foreign", lambda *_: None)
    write_whole({"code": os.system}, tmp_path / "a.ckpt")
    monkeypatch.undo()
    with pytest.raises(UserError, match="Weights only load failed"):
        read_whole(tmp_path / "a.ckpt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_kernels_no_space_left_is_named_with_what_is_needed(tmp_path):
    (tmp_path / "a.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"{os.strerror(errno.ENOSPC)} \(it needs 4\.0 MB"):
        write_whole({"weights": torch.zeros(1_000_000)}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []
