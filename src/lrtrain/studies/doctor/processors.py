"""Whether the devices can do what a run asks of them: CUDA, NCCL, bfloat16, and a compiler for their kernels."""

import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lrtrain.studies.doctor.finding import Finding, failed, passed, warned

SLOW = 1.5
"""Times that a product in bfloat16 may take of one in float32 before bfloat16 is the wrong precision."""


def check_cuda(wanted: bool | None) -> Iterator[Finding]:
    """The CUDA devices, or why torch has none; `wanted`: True for a run on GPUs, False on CPUs, None for what there is.

    torch.cuda.is_available() keeps the reason to itself, and torch.cuda.init() says it.
    """
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        listed = ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in names[:8])
        yield passed("CUDA", f"{len(names)} × {names[0].name}" if len({gpu.name for gpu in names}) == 1 else listed)
        return
    try:
        torch.cuda.init()
        why = "no device"
    except (RuntimeError, AssertionError) as error:
        why = str(error).split(". Please")[0].split("\n")[0]
    driver = Path("/proc/driver/nvidia/version")
    why += (
        f"; driver: {driver.read_text().splitlines()[0]}" if driver.exists() else "; no NVIDIA driver on this machine"
    )
    if wanted:
        yield failed(
            "CUDA",
            f"trainer.accelerator asks for GPUs: {why}",
            "ask the scheduler for GPUs (--gpus-per-node, nvidia.com/gpu), a container for --gpus all or --nv",
        )
    elif wanted is None:
        yield warned("CUDA", why, "a run trains on CPUs here; where there should be GPUs, ask the scheduler for them")
    else:
        yield passed("CUDA", "not asked for (trainer.accelerator is cpu)")


def check_nccl(processes: int) -> Iterator[Finding]:
    """NCCL for several processes on GPUs, gloo for CPUs."""
    if torch.cuda.is_available():
        if not torch.distributed.is_nccl_available():
            yield failed("NCCL", "this torch is built without NCCL", "install the torch of constraints.txt")
        else:
            version = ".".join(map(str, torch.cuda.nccl.version()))
            yield passed("NCCL", version)
    elif processes > 1 and not torch.distributed.is_gloo_available():
        yield failed("gloo", "this torch is built without gloo", "install the torch of constraints.txt")


def check_bfloat16(precision: str | None) -> Iterator[Finding]:
    """Measures products in bfloat16 and float32: some CPUs have the former only in software, 300 times slower.

    `precision` is `trainer.precision`; null lets a run choose by the processor's features.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ratio = _seconds(torch.bfloat16, device) / _seconds(torch.float32, device)
    found = f"a product in bfloat16 takes {ratio:.2g} × the time of float32 ({device.type})"
    if ratio < SLOW:
        yield passed("bfloat16", found)
    elif precision is not None and precision.startswith("bf16"):
        yield failed("bfloat16", f"trainer.precision is {precision}, and {found}", "set trainer.precision to 32-true")
    elif precision is None:
        yield warned("bfloat16", found, "leave trainer.precision null or set 32-true; not bf16-mixed on this machine")
    else:
        yield passed("bfloat16", f"not asked for; {found}")


def check_compiler(needed: bool) -> Iterator[Finding]:
    """Compiles an extension module, as Triton and torch.compile do at a run's first step."""
    command = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    verdict = failed if needed else warned
    use = "model.compile needs one" if needed else "model.compile and Triton's kernels need one"
    if command is None:
        yield verdict("compiler", f"no C compiler ({use})", "apt-get install gcc, or set CC")
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n")
        include = sysconfig.get_paths()["include"]
        line = [*command.split(), "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(Path(folder, "probe.so"))]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=8, check=False)
            error = (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as broken:
            error = str(broken)
    if not error:
        yield passed("compiler", f"{command} compiles against Python's headers")
        return
    why = next((text for text in error.splitlines() if "error" in text.lower()), error)[-200:]
    advice = (
        f"install Python's headers (python3-dev) in {include}" if "Python.h" in error else "set CC to one that works"
    )
    yield verdict("compiler", f"{command} cannot compile an extension ({use}): {why}", advice)


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest time of a product; as many tries as a third of a second has room for."""
    size = 4096 if device.type == "cuda" else 384
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    times: list[float] = []
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end or len(times) < 2:
        begun = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)
