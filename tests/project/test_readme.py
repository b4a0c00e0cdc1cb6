"""What the README shows works."""

import re
import subprocess
import sys
from pathlib import Path

from lrtrain.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_plain_loop_trains_and_needs_no_lightning() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    program = f"""
import sys, torch
torch.manual_seed(0)
batches = [torch.arange(2 * 17).view(2, 17)] * 8
{code.replace("next_token_loss(", "print(float(loss := next_token_loss(").replace(".backward()", ")); loss.backward()")}
assert "lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(line) for line in done.stdout.split()]
    assert losses[-1] < losses[0] - 0.5


def test_every_file_and_command_that_it_names_exists() -> None:
    for path in re.findall(r"(?:configs|docs)/[\w./-]+\.(?:ya?ml|md|png)", README):
        assert (ROOT / path).is_file(), path
    for command in re.findall(r"`?lrtrain (\w+) ", README):
        assert command in COMMANDS, command
