"""docs/library.md: its code runs as it stands there, block after block, and does what the page says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs/library.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs_from_its_first_block_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) == 6
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/library.md, block {number}", "exec"), names)
    assert "lm_head: left, it is the output head" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"checkpoint-3", "checkpoint-6"}
    merged = names["AutoModelForCausalLM"].from_pretrained(tmp_path / "merged")
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, names["model"].eval()(tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_names_of_the_page_are_there() -> None:
    import lrtrain.constraints
    import lrtrain.nn

    for name in ("factorize_", "merge_"):
        assert f"`lrtrain.nn.{name}(" in PAGE
        assert hasattr(lrtrain.nn, name)
    for name in ("spectron_for", "lora_muon_for", "sct_for", "optimizer_for"):
        assert name in PAGE
        assert hasattr(lrtrain.constraints, name)


def test_the_plain_loop_trains_and_needs_no_lightning() -> None:
    *_, code = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    program = f"""
import sys, torch
torch.manual_seed(0)
{code}
assert "lightning" not in sys.modules
print(losses[0], losses[-1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, last = map(float, done.stdout.split())
    assert last < first - 0.5
