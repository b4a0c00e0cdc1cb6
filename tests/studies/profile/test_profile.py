"""`lrtrain profile`: real steps of a real run; the parts add up; a trace; what memory holds; no run is left."""

import gzip
import io
import json
import logging
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import toy
from commandline import RECIPE, arguments, refusal
from lrtrain.cli.main import main
from lrtrain.studies.profile.profiled_steps import STEPS

ACCUMULATE = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def profiled(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of runs after a profile, and what it printed."""
    runs, out = tmp_path_factory.mktemp("runs"), io.StringIO()
    with redirect_stdout(out):
        code = main(["profile", *arguments(shards, runs, f"--trainer.accumulate_grad_batches={ACCUMULATE}")])
    assert code == 0
    return runs, out.getvalue()


@pytest.fixture(scope="module")
def figures(profiled: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((profiled[0] / "quickstart/profile/profile.json").read_text())


def test_the_table_names_every_part_of_a_step(profiled: tuple[Path, str], figures: dict[str, Any]) -> None:
    _, printed = profiled
    parts = [part["part"] for part in figures["parts"]]
    forward = [f"forward: {part}" for part in ("embedding", "attention", "MLP", "norms and residuals", "head and loss")]
    others = ["optimizer: AdamW", "optimizer: Spectron", "constraints", "clipping, schedule", "telemetry", "logging"]
    assert parts[:12] == ["data", *forward, "backward", *others[:5]]
    assert set(others) | {"checkpoint", "the Trainer itself"} <= {*parts}
    assert all(part["seconds"] > 0 for part in figures["parts"] if not part["part"].startswith("callback"))
    for part in parts:
        assert f"\n{part}  " in f"\n{printed}"
    assert f"first: {figures['advice']}\n" in printed


def test_micro_batches_count_as_often_as_a_step_has_them(figures: dict[str, Any]) -> None:
    steps = figures["steps"]
    assert len(steps) == STEPS
    for part in ("backward", "forward: attention", "optimizer: Spectron"):
        seconds = next(one["seconds"] for one in figures["parts"] if one["part"] == part)
        times = 1 if part.startswith("optimizer") else ACCUMULATE
        assert seconds == pytest.approx(times * median(step[part] for step in steps))
    (checkpoint,) = [one for one in figures["parts"] if one["part"] == "checkpoint"]
    assert checkpoint["every"] == 100  # as the recipe has it
    spent = [step.get("checkpoint", 0.0) for step in steps]
    others = [median(spent[:due] + spent[due + 1 :]) for due in range(STEPS)]  # one step has a checkpoint
    due = [one for value, one in zip(spent, others, strict=True) if checkpoint["once"] == pytest.approx(value - one)]
    (always,) = set(due)
    assert checkpoint["seconds"] == pytest.approx(always + checkpoint["once"] / checkpoint["every"])


def test_the_trace_has_the_parts(profiled: tuple[Path, str]) -> None:
    with gzip.open(profiled[0] / "quickstart/profile/trace.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"data", "forward: attention", "backward", "optimizer: Spectron", "constraints", "aten::mm"} <= names


def test_memory_is_that_of_the_model(figures: dict[str, Any]) -> None:
    from lrtrain.config.plan_parser import parse
    from lrtrain.studies.plan.planned_model import model_of

    model = model_of(*parse(["--config", str(RECIPE), *toy.MODEL]))
    memory, weights = figures["memory"], 4 * sum(p.numel() for p in model.decoder.parameters())
    assert memory["weights"] == weights
    assert weights < memory["optimizer"] < 2 * weights  # one average of a factor, two of all else
    assert 0 < memory["gradients"] <= weights
    assert memory["total"] == sum(memory[kind] for kind in ("weights", "optimizer", "gradients", "activations"))


def test_no_run_is_left(profiled: tuple[Path, str]) -> None:
    runs, _ = profiled
    assert [path.name for path in (runs / "quickstart").iterdir()] == ["profile"]
    assert sorted(path.name for path in (runs / "quickstart/profile").iterdir()) == ["profile.json", "trace.json.gz"]


def test_what_a_profile_cannot_do_is_refused_in_a_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["profile", *arguments(shards, tmp_path)]
    assert "--ckpt_path: a profile begins a run" in refusal([*command, "--ckpt_path=last"], capsys)
    file = tmp_path / "file"
    file.touch()
    assert f"--out {file}: File exists" in refusal([*command, "--out", str(file)], capsys)
    assert "--model.decoder.depht" in refusal([*command, "--model.decoder.depht=3"], capsys)


@pytest.mark.parametrize(
    ("profiler", "written"),
    [
        ("simple", ""),
        ("{class_path: lightning.pytorch.profilers.AdvancedProfiler, init_args: {dirpath: OUT, filename: own}}", "own"),
        ("{class_path: lightning.pytorch.profilers.PyTorchProfiler, init_args: {dirpath: OUT, filename: own}}", "own"),
    ],
    ids=["simple", "advanced", "pytorch"],
)
def test_the_trainers_own_profilers_are_usable_by_yaml(
    profiler: str, written: str, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlay, out = tmp_path / "profiler.yaml", tmp_path / "out"
    overlay.write_text(f"trainer:\n  profiler: {profiler.replace('OUT', str(out))}\n")
    flags = arguments(shards, tmp_path / "runs", "--trainer.limit_val_batches=0")
    profilers = logging.getLogger("lightning.pytorch.profilers")
    profilers.addHandler(caplog.handler)
    try:
        assert main(["fit", *flags, "--config", str(overlay)]) == 0
    finally:
        profilers.removeHandler(caplog.handler)
    if written:
        assert any(path.name.startswith(f"fit-{written}") and path.stat().st_size for path in out.iterdir())
    else:
        assert "[Strategy]SingleDeviceStrategy.backward" in caplog.text
