"""What the processes of a sharded `lrtrain fit` write together: whole or recognizably not; every command takes it."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import toy
from checkpoint_state import differences
from commandline import RECIPE, arguments, refusal
from lrtrain.checkpoint import shard_folder as sharded
from lrtrain.checkpoint import single_file as wholefile
from lrtrain.checkpoint.directory import newest_whole, remove_partial, resolve_ckpt_path
from lrtrain.cli.main import main
from lrtrain.runtime.errors import UserError
from ranks import command_on_ranks, on_ranks

FSDP = RECIPE.parent / "parallel/fsdp.yaml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs after four steps on two processes."""
    runs = tmp_path_factory.mktemp("runs")
    more = ["--config", str(FSDP), "--checkpoints.every_n_steps=1", "--checkpoints.keep=2"]
    outcomes = command_on_ranks(2, ["fit", *arguments(shards, runs, *more, steps=4)])
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    return runs


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy of the newest checkpoint, to be spoiled."""
    copy = tmp_path / "checkpoints/step-00000004.ckpt"
    shutil.copytree(trained / "quickstart/0001/checkpoints/step-00000004.ckpt", copy)
    return copy


def test_all_processes_write_one_run_and_the_newest_checkpoints_stay(trained: Path) -> None:
    assert [path.name for path in (trained / "quickstart").iterdir()] == ["0001"]
    folder = trained / "quickstart/0001/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003.ckpt", "step-00000004.ckpt"]
    assert {path.name for path in (folder / "step-00000004.ckpt").iterdir()} == {
        "meta.pt",
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    }


def test_last_goes_on_with_two_processes_and_then_with_one(trained: Path, shards: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs)
    resume = [*arguments(shards, runs, steps=5), "--ckpt_path=last"]
    outcomes = command_on_ranks(2, ["fit", *resume, "--config", str(FSDP), "--trainer.max_steps=5"])
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert "resuming from" in outcomes[0][1]
    assert main(["fit", *resume, "--trainer.max_steps=6"]) == 0
    steps = sorted(path.name for path in (runs / "quickstart/0001/checkpoints").iterdir())
    assert steps == ["step-00000005.ckpt", "step-00000006.ckpt"]
    assert (runs / "quickstart/0001/checkpoints/step-00000006.ckpt").is_file()


def test_a_signalled_run_saves_its_shards_and_goes_on_as_if_nothing_had_been(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    fit = ["fit", *arguments(shards, tmp_path, "--config", str(FSDP), steps=4)]
    stop = ["--trainer.callbacks=commandline.StopAt", "--trainer.callbacks.batch=1"]
    assert [code for code, _, _ in command_on_ranks(2, [*fit, *stop])] == [143, 143]
    folder = tmp_path / "quickstart/0001/checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000002.ckpt"]
    outcomes = command_on_ranks(2, [*fit, "--ckpt_path=last"])
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    never_stopped = trained / "quickstart/0001/checkpoints"
    whole, parts = (sharded.read(saved / "step-00000004.ckpt") for saved in (never_stopped, folder))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        found = differences(whole[key], parts[key])
        assert [place for place in found if not place.endswith("seconds")] == []  # of the wall clock


def test_validate_and_generate_take_the_folder_and_the_file_made_of_it_alike(
    trained: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = trained / "quickstart/0001/checkpoints/step-00000004.ckpt", tmp_path / "whole.ckpt"
    assert main(["consolidate", str(folder), "--out", str(file)]) == 0
    validate, said = ["validate", *arguments(shards, trained)], []
    for path in (folder, file):
        capsys.readouterr()
        assert main([*validate, f"--ckpt_path={path}"]) == 0
        assert main(["generate", str(path), "--prompt=step", "--max-new-tokens=8"]) == 0
        said.append(capsys.readouterr().out.replace(str(path), ""))
    assert said[0] == said[1]
    code, out, err = command_on_ranks(2, [*validate, "--config", str(FSDP), f"--ckpt_path={folder}"])[0]
    assert code == 0, err
    assert "loss" in out


def test_export_makes_the_same_of_the_folder_and_of_the_file_made_of_it(
    trained: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = trained / "quickstart/0001/checkpoints/step-00000004.ckpt", tmp_path / "whole.ckpt"
    assert main(["consolidate", str(folder), "--out", str(file)]) == 0
    for path in (folder, file):
        assert main(["export", str(path), "--out", str(tmp_path / path.stem)]) == 0
    exported = [(tmp_path / path.stem / "model.safetensors").read_bytes() for path in (folder, file)]
    assert exported[0] == exported[1]
    page = (tmp_path / folder.stem / "README.md").read_text()
    assert "# quickstart/0001, step 4" in page
    assert f"sha256 {sharded.digest(folder)}" in page
    (checkpoint / "__1_0.distcp").unlink()
    line = refusal(["export", str(checkpoint), "--out", str(tmp_path / "out")], capsys)
    assert "its __1_0.distcp is missing" in line
    assert not list(tmp_path.glob("out*"))


def test_a_sharded_run_leaves_its_folder_and_the_processes_wait_for_it(shards: Path, tmp_path: Path) -> None:
    more = ["--config", str(FSDP), "--export.format=factorized"]
    outcomes = command_on_ranks(2, ["fit", *arguments(shards, tmp_path, *more, steps=2)])
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert "wrote " in outcomes[0][1]
    assert "wrote " not in outcomes[1][1]
    folder = tmp_path / "quickstart/0001/checkpoints/step-00000002.hf"
    assert (folder / "modeling_factorized_llama.py").is_file()
    folder.rename(folder.with_name(folder.name + ".partial"))  # as a process leaves it that is killed in the export
    outcomes = command_on_ranks(2, ["fit", *arguments(shards, tmp_path, *more, steps=2), "--ckpt_path=last"])
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-00000002.ckpt", "step-00000002.hf"]


def test_consolidate_refuses_what_it_cannot_do(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").write_text("")
    out = ["--out", str(tmp_path / "new")]
    assert "exists already" in refusal(["consolidate", str(checkpoint), "--out", str(tmp_path / "there")], capsys)
    assert "is one file already" in refusal(["consolidate", str(tmp_path / "there"), *out], capsys)
    assert "does not exist" in refusal(["consolidate", str(tmp_path / "nothing"), *out], capsys)
    (checkpoint / "meta.pt").unlink()
    assert "it is a folder without meta.pt" in refusal(["consolidate", str(checkpoint), *out], capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["meta.pt", ".metadata", "__0_0.distcp", "__1_0.distcp"])
def test_a_torn_folder_is_passed_over_by_name(
    name: str, checkpoint: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = checkpoint.with_name("step-00000003.ckpt")
    shutil.copytree(trained / "quickstart/0001/checkpoints/step-00000003.ckpt", older)
    whole = (checkpoint / name).read_bytes()
    spoiled = {"cut": whole[:-100], "changed": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], "gone": None}
    for content in spoiled.values():
        (checkpoint / name).unlink() if content is None else (checkpoint / name).write_bytes(content)
        assert sharded.fault(checkpoint)
        assert resolve_ckpt_path("last", checkpoint.parents[1]) == older
        assert f"passed over {checkpoint}: " in capsys.readouterr().err
        with pytest.raises(UserError, match=name.strip(".")):
            sharded.read(checkpoint)


def test_a_folder_that_was_not_finished_is_no_checkpoint_and_is_swept(checkpoint: Path) -> None:
    partial = checkpoint.rename(checkpoint.with_name(checkpoint.name + wholefile.PARTIAL))
    assert newest_whole(checkpoint.parent) == (None, [])
    assert remove_partial(checkpoint.parent) == [partial]
    assert not partial.exists()


def test_a_folder_cannot_run_code_on_reading(checkpoint: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    (checkpoint / ".metadata").write_bytes(pickle.dumps(Harm()))
    tensor = {"state_dict/decoder.norm.weight": torch.empty(64)}
    with pytest.raises(UserError, match=r"names posix\.system"):
        sharded.read_into(checkpoint, tensor)


def test_a_full_disk_ends_every_process_with_the_same_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    lines = on_ranks(2, _write, tmp_path / "checkpoints/step-00000001.ckpt")
    assert len(set(lines)) == 1
    assert "cannot write checkpoint" in lines[0]


def _write(path: Path) -> str:
    torch.distributed.init_process_group("gloo")
    try:
        sharded.write_sharded({"state_dict": {"a": torch.zeros(3)}}, path)
    except UserError as error:
        return str(error)
    return "written"
