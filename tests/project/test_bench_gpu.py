"""`python -m benchmarks.gpu`: one line without a GPU; every row at toy size on a CPU."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import gpu

    def run(*flags: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu", *flags])
        return gpu.main()

    return run


def test_without_a_gpu_it_says_so_in_a_line(
    bench: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench() == 2  # type: ignore[operator]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("benchmarks.gpu: no GPU here")
    assert printed.err.count("\n") == 1


def test_every_row_is_measured_at_toy_size(bench: object, tmp_path: Path) -> None:
    flags = [
        "--toy",
        "--sizes",
        "S",
        "--batch",
        "2",
        "--block",
        "16",
        "--repeats",
        "1",
        "--out",
        f"{tmp_path}/gpu.json",
    ]
    assert bench(*flags) == 0  # type: ignore[operator]
    written = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["what"]: row for row in written["rows"]}
    trained = [f"{form} S, {how}" for form in ("dense", "low-rank") for how in ("eager", "compiled")]
    assert [*rows] == [*trained, "polar factors of all factors of S", "retraction of all factors of S"]
    for name in trained:
        assert rows[name]["tokens/s"] > 0
        assert 0 < rows[name]["step share %"] < 100
    assert all(row["ratio"] > 0 for name, row in rows.items() if name not in trained)
    assert "left_out" not in written


def test_what_there_is_no_time_for_is_named(bench: object, tmp_path: Path) -> None:
    assert bench("--toy", "--sizes", "S", "--seconds", "0", "--out", f"{tmp_path}/gpu.json") == 2  # type: ignore[operator]
