"""The folder of checkpoints: full disks, which one is the last, which are kept, and which a model refuses."""

import os
import resource

import pytest
import torch

from checkpoint_program import Batches, Net, fit, make_trainer
from checkpoint_state import newest, saved_steps
from lrtrain.checkpoint.checkpoint_io import check_architecture
from lrtrain.checkpoint.checkpoints import Checkpoints
from lrtrain.checkpoint.directory import resolve_ckpt_path, step_path
from lrtrain.checkpoint.single_file import fault, read_whole
from lrtrain.runtime.errors import UserError


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
    assert set(own) == {"version", "config", "tokenizer", "rng", "validation_due", "ancestor"}


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
