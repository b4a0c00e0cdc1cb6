"""What a machine gives every process: versions of packages, shared memory, open files, a home to keep caches in."""

import os
import re
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from lrtrain.runtime.units import short
from lrtrain.studies.doctor.finding import Finding, failed, passed, warned

SHARED = 2**30
"""Bytes of shared memory that several processes with loaders and NCCL do with."""
FILES = 4096
"""Open files that several loaders, shards and connections stay below."""


def check_versions(requirements: Sequence[str], measured: Mapping[str, str]) -> Iterator[Finding]:
    """Installed packages against what lrtrain requires (`torch>=2.11`), and those with which figures were measured."""
    wrong, other = [], []
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            wrong.append(f"{wanted.name} {there}, wanted {wanted.specifier}")
        elif wanted.name in measured and there.partition("+")[0] != measured[wanted.name]:
            other.append(f"{wanted.name} {there} ({measured[wanted.name]})")
    if wrong:
        yield failed("versions", "; ".join(wrong), "pip install lrtrain again, with -c constraints.txt")
    elif other:
        yield warned("versions", f"not those of constraints.txt: {', '.join(other)}", "pip install -c constraints.txt")
    else:
        yield passed(
            "versions", f"torch {version('torch')}, lightning {version('lightning')} and the others as required"
        )


def read_constraints(file: Path) -> dict[str, str]:
    """Package -> version of a constraints file; empty where there is none (an installed package brings none)."""
    if not file.is_file():
        return {}
    return dict(re.findall(r"^([\w.-]+)==(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE))


def check_shared_memory(folder: Path, processes: int, workers: int, batch_bytes: int) -> Iterator[Finding]:
    """Shared memory for batches of loader processes and for NCCL between the processes of a node."""
    if not folder.is_dir():
        return  # no Linux
    free = shutil.disk_usage(folder).free
    needed = processes * workers * 2 * batch_bytes
    found = f"{short(free)}B free in {folder}"
    advice = "docker run --shm-size 8g; in Kubernetes an emptyDir with medium Memory at /dev/shm"
    if needed > free:
        yield failed("shared memory", f"{found}, and {workers} loaders a process hold {short(needed)}B there", advice)
    elif free < SHARED and (processes > 1 or workers > 0):
        yield warned("shared memory", f"{found}, little for {processes} processes with {workers} loaders each", advice)
    else:
        yield passed("shared memory", found)


def check_open_files(limit: int | None = None) -> Iterator[Finding]:
    """The number of files that a process may open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if soft != resource.RLIM_INFINITY and soft < FILES:
        yield warned("open files", f"{soft} a process", f"ulimit -n {FILES}, or LimitNOFILE of the service")
    else:
        yield passed("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} a process")


def check_home(folder: Path) -> Iterator[Finding]:
    """A folder for caches: of remote shards, of kernels, of a tokenizer; in a container often none that is writable."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(place, os.W_OK | os.X_OK):
        yield passed("caches", f"{folder} can be written")
    else:
        yield warned(
            "caches", f"{place} cannot be written", "set HOME or XDG_CACHE_HOME to a folder that can be written"
        )


def available_memory() -> float:
    """Bytes of memory that processes may still take: the machine's, or what a container's limit leaves."""
    text = Path("/proc/meminfo").read_text()
    available = float(re.search(r"MemAvailable:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]
    for limit, used in ((Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),):
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
            available = min(available, float(most) - float(used.read_text()))
    return available
