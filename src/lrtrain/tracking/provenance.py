"""Where a result comes from: the code's commit, the packages' versions and the machine."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lrtrain", "torch", "lightning", "litdata", "mlflow")


def provenance() -> dict[str, dict[str, Any]]:
    """`{"git": …, "versions": …, "hardware": …}` of this process, as plain JSON values.

    A package that is not installed has the version None; cores are those that this process may use, memory is in GiB.
    """
    versions: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    hardware = {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
    }
    return {"git": git_state(), "versions": versions, "hardware": hardware}


def source() -> str:
    """What MLflow shows as a run's source: the command, `lrtrain fit`, or the program that uses the library."""
    program, *rest = sys.argv or [""]
    own = Path(program).name in ("lrtrain", "__main__.py") and rest
    return f"lrtrain {rest[0]}" if own else Path(program).name or "python"


def git_state() -> dict[str, Any]:
    """`commit` and `dirty` (uncommitted or untracked files) of the repository one works in.

    In an image it is the commit that the image was built from (`LRTRAIN_COMMIT`, as `git describe --dirty` says it),
    whatever folder is mounted. Else this is the repository of the working directory, else the one that holds this
    package; without any, `commit` is None and `error` says why.
    """
    if built_from := os.environ.get("LRTRAIN_COMMIT"):
        return {"commit": built_from.removesuffix("-dirty"), "dirty": built_from.endswith("-dirty")}
    error = ""
    for folder in (Path.cwd(), Path(__file__).parent):
        try:
            return {
                "commit": _git(folder, "rev-parse", "HEAD").strip(),
                "dirty": bool(_git(folder, "status", "--porcelain")),
            }
        except (OSError, subprocess.SubprocessError) as failure:
            text = getattr(failure, "stderr", None) or str(failure)
            error = error or text.strip().splitlines()[0]
    return {"commit": None, "dirty": None, "error": error}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
