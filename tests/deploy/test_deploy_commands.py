"""The check of command lines in deploy files tells a good one from a bad one."""

from pathlib import Path

import pytest

from deploy_commands import check_accepted, of_lrtrain, recorded

GOOD = (
    "fit --config quickstart --ckpt_path last --trainer.max_steps 5",
    "validate --config quickstart --name a",
    "prepare --out data/x --source stdlib --train-vocab-size 300",
    "sweep --space spectron_lr --trainer.max_steps 5",
    "sync runs",
)
BAD = (
    "fit --config quickstart --trainer.max_stepz 5",
    "fit --config quickstrat",
    "prepare --out data/x --sources stdlib",
    "prepare",
    "train --config quickstart",
)


@pytest.mark.parametrize("line", GOOD)
def test_a_command_line_that_lrtrain_takes_passes(line: str) -> None:
    check_accepted(line.split())


@pytest.mark.parametrize("line", BAD)
def test_one_that_it_refuses_fails(line: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_accepted(line.split())


def test_a_script_is_run_with_stand_ins_that_write_down_what_they_are_given(tmp_path: Path) -> None:
    script = """
    set -euo pipefail
    torchrun --nproc_per_node "${GPUS:-2}" --no-python \\
      lrtrain fit --name "a b"   # a comment
    [ -z "$AGAIN" ] || lrtrain sync
    """
    commands = recorded(script, ["torchrun", "lrtrain"], tmp_path, AGAIN="1")
    assert commands == [
        ["torchrun", "--nproc_per_node", "2", "--no-python", "lrtrain", "fit", "--name", "a b"],
        ["lrtrain", "sync"],
    ]
    assert of_lrtrain(commands[0]) == ["fit", "--name", "a b"]
