"""What the benchmarks share: interleaved timing, the command line, the table and the JSON."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lrtrain.runtime.table import table as columns

RESULTS = Path(__file__).parent / "results"
"""Where a JSON goes unless `--out` names a file."""

SHORTEST_SAMPLE = 0.01
"""Seconds of one timed sample: a faster callable is called several times in it."""


def compare(cases: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 1) -> dict[str, float]:
    """Median seconds of one call of each case.

    The cases take turns, one sample each, so that whatever else the machine does falls on all of them alike. Each is
    called `warmup` times before (and as often as it takes to know its speed), and waits for the GPU if there is one.
    """
    calls = {}
    for name, case in cases.items():
        for _ in range(warmup):
            case()
        calls[name] = max(1, round(SHORTEST_SAMPLE / _seconds(case, 1)))
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            samples[name].append(_seconds(case, calls[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def _seconds(case: Callable[[], object], calls: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        case()
    synchronize()
    return (time.perf_counter() - start) / calls


def synchronize() -> None:
    """Waits for the GPU, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark; add its own to the parser."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON to write [benchmarks/results/NAME.json]")
    return parser


def report(rows: Sequence[Mapping[str, Any]], name: str, out: Path | None = None, **notes: Any) -> None:
    """Prints rows of equal keys as a table, and writes them as JSON with hardware, versions, date and command.

    Args:
        rows: One mapping a line; by convention `ratio`, `required` and `met` end a row that has a target.
        name: Of the benchmark.
        out: The JSON to write; `benchmarks/results/<name>.json` when None.
        notes: Whatever else the JSON and the last lines should say.
    """
    print(table(rows))
    for key, value in notes.items():
        print(f"{key.replace('_', ' ')}: {value}")
    out = out or RESULTS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"benchmark": name, **environment(), **notes, "rows": list(rows)}, indent=1) + "\n")
    print(out)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text, numbers to four significant digits."""
    return columns([list(rows[0]), *([_text(value) for value in row.values()] for row in rows)])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value}"


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([f"python -m {_module()}", *sys.argv[1:]]),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else Path(sys.argv[0]).stem


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
