"""All checks of a machine, and of a configuration on it, in the order in which a run would meet what they look at."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import torch

from lrtrain.config.own_data import data_sizes
from lrtrain.config.plan_parser import parse
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.units import short
from lrtrain.studies.doctor import addresses, processors, started_ranks, this_machine
from lrtrain.studies.doctor.data_set import check_data
from lrtrain.studies.doctor.disk_space import check_disk
from lrtrain.studies.doctor.finding import Check, Finding, carried_out, failed, warned
from lrtrain.studies.doctor.first_weights import check_first_weights
from lrtrain.studies.doctor.needed_memory import check_memory
from lrtrain.studies.doctor.started_ranks import Asked

SECONDS = 15.0
"""The time of one check."""
SECONDS_TO_PLAN = 120.0
SHARED = Path("/dev/shm")
Checks = Iterator[tuple[str, Check]]


@dataclass(frozen=True)
class Machine:
    """What the checks are told of the machine."""

    gpus: int
    environment: dict[str, str]


@dataclass(frozen=True)
class Planned:
    """What a configuration takes: bytes of a checkpoint, and of one process at its peak."""

    checkpoint: float
    peak: float


def examine(argv: list[str]) -> list[Finding]:
    """Looks at the machine, and where `argv` holds a configuration, at what that asks of it."""
    gpus: list[int] = []
    planned: list[Planned] = []
    findings = carried_out("CUDA", partial(_count, gpus), SECONDS)
    machine = Machine(sum(gpus), dict(os.environ))
    config = None
    if argv:
        try:
            config = parse(argv)[1]
            findings += carried_out("configuration", partial(_planned, argv, planned), SECONDS_TO_PLAN)
        except UserError as error:
            findings.append(_refused(error))
    checks = [*_of_the_machine(machine, config), *_of_places(machine, config, planned[0] if planned else None)]
    for name, check in checks:
        failures = [finding.check for finding in findings if finding.status == "fail"]
        if name != "data" or not any(key.startswith(("data.path", "data.mix")) for key in failures):  # its URL
            findings += carried_out(name, check, SECONDS)
    return findings


def _of_the_machine(machine: Machine, config: Any) -> Checks:
    """Libraries, devices, launcher and limits; with a configuration, against what it asks for."""
    gpus, environment = machine.gpus, machine.environment
    trainer = None if config is None else config.trainer
    asked, processes = _asked(config), _processes(machine, config)
    on_gpus = {"cpu": False, "gpu": True, "cuda": True}.get("" if trainer is None else str(trainer.accelerator).lower())
    required = [text for text in requires("lrtrain") or [] if "extra ==" not in text]
    measured = this_machine.read_constraints(Path(__file__).parents[4] / "constraints.txt")
    data = {} if config is None else config.data.get("init_args", config.data)
    workers, sizes = int(data.get("num_workers") or 0), _sizes(config)
    batch_bytes = 8 * sizes[1] * (sizes[0] + 1) if sizes else 0
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield "versions", partial(this_machine.check_versions, required, measured)
    yield "CUDA", partial(processors.check_cuda, on_gpus)
    yield "NCCL", partial(processors.check_nccl, processes * (asked.nodes if asked else 1))
    yield "bfloat16", partial(processors.check_bfloat16, None if trainer is None else trainer.precision)
    yield "compiler", partial(processors.check_compiler, config is not None and bool(config.model.compile))
    yield "launcher", partial(started_ranks.check_launcher, environment, asked, gpus)
    uses_gpus = gpus > 0 if on_gpus is None else on_gpus
    yield "devices", partial(started_ranks.check_devices, environment, asked, gpus, uses_gpus)
    yield "network", partial(started_ranks.check_meeting, environment)
    yield "shared memory", partial(this_machine.check_shared_memory, SHARED, processes, workers, batch_bytes)
    yield "open files", this_machine.check_open_files
    yield "caches", partial(this_machine.check_home, cache)


def _of_places(machine: Machine, config: Any, planned: Planned | None) -> Checks:
    """The disk, every URL, the data, and memory: what a run reads, writes and fills."""
    runs = "runs" if config is None else str(config.runs)
    if "://" not in runs:
        yield "disk", partial(check_disk, Path(runs), planned.checkpoint if planned else None, _kept(config))
    for key, found in addresses.urls_of(_plain(config), machine.environment).items():
        url = found.partition("#step=")[0]  # as a record writes init_from
        if not (key.startswith("data.prepare") and _is_prepared(config)):
            yield key, partial(addresses.check_url, key, url)
    origin = None if config is None else config.init_from
    if origin and "://" not in origin:
        yield "init_from", partial(check_first_weights, origin, _plain(config)["model"]["decoder"])
    sizes, processes = _sizes(config), _processes(machine, config)
    data = {} if config is None else config.data.get("init_args", config.data)
    if sizes is not None:
        # A mix draws from each by its weight, whatever its size.
        together = 1 if data.get("mix") else sizes[1] * processes * int(config.trainer.num_nodes)
        prepares = data.get("prepare") is not None
        for path in _data_sets(_plain(data)):
            yield "data", partial(check_data, path, prepares, sizes[0], together, _vocabulary(config))
    if planned is not None:
        accelerator = str(config.trainer.accelerator).lower()
        on_gpus = accelerator in ("gpu", "cuda") or (machine.gpus > 0 and accelerator != "cpu")
        yield "memory", partial(_memory, planned, processes, on_gpus)


def _count(gpus: list[int]) -> Iterator[Finding]:
    """A check of its own: a driver may hang."""
    gpus.append(torch.cuda.device_count())
    yield from ()


def _planned(argv: list[str], found: list[Planned]) -> Iterator[Finding]:
    """Plans the configuration as `lrtrain plan` does, which refuses what the keys alone do not show."""
    from lrtrain.studies.plan.estimate import make_plan

    try:
        plan = make_plan(argv)
    except UserError as error:
        yield _refused(error)
        return
    line = next((line for line in plan.lines if _is_layout(line, plan.run.shards)), plan.lines[0])
    memory = line.recomputed if plan.run.recompute else line.kept
    state = sum(slot.state for slot in plan.slots)
    found.append(Planned(4 * plan.parameters + state, memory.peak))
    if plan.overlaid:
        yield warned("configuration", "; ".join(plan.overlaid), "see whether that is what you mean")


def _refused(error: UserError) -> Finding:
    what, _, advice = str(error).rpartition("; ")
    return failed("configuration", what or advice, advice if what else "correct it")


def _asked(config: Any) -> Asked | None:
    return None if config is None else Asked(_per_node(config.trainer.devices), int(config.trainer.num_nodes))


def _processes(machine: Machine, config: Any) -> int:
    """Processes of this node."""
    asked = _asked(config)
    return 1 if asked is None else asked.per_node or machine.gpus or 1


def _is_layout(line: Any, shards: int | None) -> bool:
    return line.strategy == ("ddp" if shards is None else "fsdp")


def _data_sets(data: dict[str, Any]) -> list[str]:
    """The one of `data.path`, or those of `data.mix`."""
    mixed = [source.get("path") for source in data.get("mix") or [] if isinstance(source, dict)]
    return [path for path in [data.get("path"), *mixed] if isinstance(path, str)]


def _is_prepared(config: Any) -> bool:
    """Whether what the data would be prepared from is not asked for any more."""
    path = str(config.data.get("init_args", config.data).get("path"))
    return "://" in path or Path(path, "manifest.json").exists()


def _memory(planned: Planned, processes: int, on_gpus: bool) -> Iterator[Finding]:
    if on_gpus and torch.cuda.device_count() == 0:
        found = f"a process takes about {short(planned.peak)}B, and no GPU is here to compare with"
        yield warned("memory", found, "run lrtrain doctor where the GPUs are")
    elif on_gpus:
        free = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
        smallest = min(free)[0]
        yield from check_memory(planned.peak, smallest, f"free on the fullest of {len(free)} GPUs")
    else:
        available = this_machine.available_memory()
        yield from check_memory(planned.peak, available / processes, f"of {processes} on this machine's CPUs")


def _per_node(devices: Any) -> int | None:
    text = str(devices).strip()
    if isinstance(devices, list):
        return len(devices)
    if re.fullmatch(r"\d+", text):
        return int(text)
    return len([part for part in text.split(",") if part.strip()]) if "," in text else None


def _kept(config: Any) -> int | None:
    """Checkpoints that lie on the disk at once; all of a run's where all are kept."""
    if config is None:
        return None
    keep, every, steps = (
        int(n) for n in (config.checkpoints.keep, config.checkpoints.every_n_steps, config.trainer.max_steps)
    )
    return keep + 1 if keep != -1 else -(-max(steps, every) // every)


def _sizes(config: Any) -> tuple[int, int] | None:
    """Tokens of a sequence and sequences of a batch."""
    if config is None:
        return None
    try:
        return data_sizes(config.data)
    except UserError:
        return None


def _vocabulary(config: Any) -> int | None:
    stated = config.model.decoder.get("init_args", {}).get("vocab_size")
    return stated if isinstance(stated, int) else None


def _plain(node: Any) -> Any:
    """Nested dictionaries and lists of what a parser returns."""
    if hasattr(node, "as_dict"):
        return _plain(node.as_dict())
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node
