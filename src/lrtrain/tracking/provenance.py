"""Where a result comes from: the code's commit, the packages' versions and the machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lrtrain", "torch", "lightning", "litdata", "mlflow")


def provenance() -> dict[str, dict[str, Any]]:
    """`{"git": …, "versions": …, "hardware": …}` of this process, as plain JSON values."""
    return {"git": git_state(), "versions": package_versions(), "hardware": hardware()}


def git_state() -> dict[str, Any]:
    """`commit` and `dirty` (uncommitted or untracked files) of the repository one works in.

    This is the repository of the working directory, else the one that holds this package; without any, `commit` is
    None and `error` says why.
    """
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


def package_versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that decide a result; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def hardware() -> dict[str, Any]:
    """CPU model, the cores this process may use, memory in GiB, and each GPU's name and memory in GiB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
    }


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
