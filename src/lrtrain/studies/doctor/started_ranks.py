"""Who will start the processes of a run, how many there will be, and where they meet."""

import errno
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lrtrain.studies.doctor.finding import Finding, failed, passed, warned


@dataclass(frozen=True)
class Asked:
    """Processes that a configuration asks for: on one node (None: as many as there are devices), and nodes."""

    per_node: int | None
    nodes: int


def check_launcher(environment: Mapping[str, str], asked: Asked | None, gpus: int) -> Iterator[Finding]:
    """The launcher, as Lightning will find it, and its number of processes against the configuration's."""
    if "TORCHELASTIC_RUN_ID" in environment:
        world, local = _number(environment, "WORLD_SIZE"), _number(environment, "LOCAL_WORLD_SIZE")
        yield from _counted("torchrun", asked, world // max(local, 1), local)
    elif "SLURM_NTASKS" in environment or "SLURM_JOB_ID" in environment:
        yield from _slurm(environment, asked)
    elif asked is not None and asked.nodes > 1:
        names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
        if missing := [name for name in names if name not in environment]:
            yield failed(
                "launcher",
                f"trainer.num_nodes is {asked.nodes}, no torchrun or srun, and {', '.join(missing)} not set",
                "start under torchrun or srun, or set them on each node (NODE_RANK counts from 0)",
            )
        else:
            each = asked.per_node or gpus or 1
            yield passed("launcher", f"lrtrain starts {each} processes on each of {asked.nodes} nodes")
    else:
        each = 1 if asked is None else asked.per_node or gpus or 1
        yield passed("launcher", f"none: lrtrain starts {each} process{'es' * (each > 1)} itself")
    if "KUBERNETES_SERVICE_HOST" in environment:
        yield passed("Kubernetes", f"a pod ({environment.get('HOSTNAME', socket.gethostname())})")


def check_devices(environment: Mapping[str, str], asked: Asked | None, gpus: int, on_gpus: bool) -> Iterator[Finding]:
    """GPUs that are visible against processes of a node."""
    if asked is None or asked.per_node is None or not on_gpus:
        return
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    found = f"trainer.devices is {asked.per_node}, and {gpus} GPU{'s are' if gpus != 1 else ' is'} visible"
    found += f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    if asked.per_node > gpus:
        yield failed(
            "devices", found, "ask for as many GPUs a node, one task each without --gpus-per-task, or set it lower"
        )
    elif asked.per_node < gpus:
        yield warned("devices", found, f"the others stay idle: set trainer.devices to {gpus}")
    else:
        yield passed("devices", found)


def check_meeting(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The address where processes meet: known, and its port free on the host that is to listen there."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        stated = (
            environment.get(name, "").lstrip("^=").split(",") if not environment.get(name, "^").startswith("^") else []
        )
        there = [interface for _, interface in socket.if_nameindex()]
        if missing := [prefix for prefix in stated if not any(one.startswith(prefix) for one in there)]:
            yield failed("network", f"{name} is {', '.join(missing)}, here are {', '.join(there)}", f"correct {name}")
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "")
    if address is None:
        return
    if port and not port.isdigit():
        yield failed("MASTER_PORT", f"it is {port!r}", "give the number of a free port")
        return
    where = f"{address}{':' if port else ''}{port}"
    try:
        found = socket.getaddrinfo(address, int(port or 0), type=socket.SOCK_STREAM)
    except OSError as error:
        yield failed("MASTER_ADDR", f"{address} is not known: {error.strerror}", "give the first node's address")
        return
    first = all(int(environment.get(name) or 0) == 0 for name in ("RANK", "NODE_RANK", "SLURM_PROCID", "LOCAL_RANK"))
    if not port or not first or "TORCHELASTIC_RUN_ID" in environment:
        yield passed("MASTER_ADDR", f"{where} is known")  # torchrun's agent listens there already
        return
    family, kind, _, _, target = found[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                yield failed(
                    "MASTER_PORT", f"{port} is in use on this host", "choose another MASTER_PORT, the same on all"
                )
            else:
                advice = "NODE_RANK 0 belongs to the host of MASTER_ADDR: correct either"
                yield failed("MASTER_ADDR", f"{address} is not this host's ({error.strerror})", advice)
            return
    yield passed("MASTER_PORT", f"{where} is this host's and free")


def _slurm(environment: Mapping[str, str], asked: Asked | None) -> Iterator[Finding]:
    tasks = environment.get("SLURM_NTASKS", "1")
    name = environment.get("SLURM_JOB_NAME", "")
    if name in ("bash", "interactive"):
        found = f"Slurm job named {name!r}: taken for interactive, its tasks do not join"
        yield warned("Slurm", found, "start with sbatch, or give the job another name (--job-name)")
        return
    each = re.match(r"\d+", environment.get("SLURM_NTASKS_PER_NODE", ""))
    if each is None and int(tasks) > 1:
        yield failed("Slurm", f"--ntasks {tasks} without --ntasks-per-node", "give --nodes and --ntasks-per-node")
        return
    if "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment:
        advice = "inside the job start with srun lrtrain …"
        if int(tasks) > 1:
            yield failed("Slurm", f"a job of {tasks} tasks, and this is not started by srun", advice)
            return
    nodes = int(environment.get("SLURM_NNODES", "1"))
    yield from _counted(f"Slurm job {environment.get('SLURM_JOB_ID', '')}", asked, nodes, int(each[0]) if each else 1)


def _counted(launcher: str, asked: Asked | None, nodes: int, each: int) -> Iterator[Finding]:
    found = f"{launcher}: {nodes} node{'s' * (nodes != 1)} with {each} process{'es' * (each != 1)} each"
    if asked is not None and (asked.nodes != nodes or asked.per_node not in (None, each)):
        per_node = asked.per_node if asked.per_node is not None else each
        yield failed(
            "launcher",
            f"{found}, the configuration has trainer.num_nodes {asked.nodes} and trainer.devices {per_node}",
            f"set trainer.num_nodes to {nodes} and trainer.devices to {each}, or start as many",
        )
    else:
        yield passed("launcher", found)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 1
