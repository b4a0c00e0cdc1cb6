"""What the first process decides for all, before torch connects them; and which process prints an error."""

import contextlib
import gc
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lrtrain.runtime.errors import TemporaryError, UserError

DECIDED = "LRTRAIN_DECIDED"
"""Hands what was decided to the processes that Lightning starts."""

PATIENCE = timedelta(minutes=30)
"""How long the other processes wait for the first one, which may still bring a checkpoint to a store."""

_calls = itertools.count()
_stores: list[Any] = []
"""Kept: the server ends with the first process's store, and torch connects to the same one later."""


class _End:
    code: int | None = None


def is_first() -> bool:
    """Whether this is the first process of the run, from what torchrun, Slurm or Lightning tell it."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def started_by_lightning() -> bool:
    """Whether Lightning has started this process, which is none of torchrun's, Slurm's, LSF's or MPI's."""
    return DECIDED in os.environ and int(os.environ.get("LOCAL_RANK") or 0) > 0 and _launcher() is None


def decide_on_rank_zero(decide: Callable[[], Any], nodes: int = 1) -> Any:
    """Calls `decide` on the first process and returns its result, plain JSON values, on every process.

    Processes that Lightning starts find it in the environment. Those of torchrun, Slurm, LSF or MPI, which start all at
    once, meet at the address where torch connects them later. So do the processes that start Lightning's on each of
    several `nodes`.

    Raises:
        UserError: `decide` did, on the first process; the others end with exit code 2 and without a word. Nothing says
            where the other nodes are.
        TemporaryError: the first process does not answer.
    """
    launcher = _launcher()
    if launcher is not None:
        return _meet(decide, launcher.main_address, launcher.main_port, launcher.global_rank(), launcher.world_size())
    if nodes > 1 and "LOCAL_RANK" not in os.environ:
        os.environ[DECIDED] = json.dumps(_meet(decide, *_first_node(nodes), nodes))
    elif is_first() or DECIDED not in os.environ:
        os.environ[DECIDED] = json.dumps(decide())
    return json.loads(os.environ[DECIDED])


def should_print(line: str) -> bool:
    """Whether this process should print an error that others may have met too."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        return is_first()  # configuration and data are the same for all of them
    store = torch.distributed.distributed_c10d._get_default_store()
    try:
        return bool(store.add(f"lrtrain/said/{hashlib.sha256(line.encode()).hexdigest()}", 1) == 1)
    except RuntimeError:
        return False  # the first process, which held the store, has ended with its own line


def first_leaves_last(act: Callable[[], None]) -> None:
    """Calls `act` on the first process, while the others wait for its end before they return.

    To be called on the way out, on all processes: whoever started them ends the rest when one has ended with an error,
    and the first process is the one that still sends the record.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        if is_first():
            act()
        return
    store, key = torch.distributed.distributed_c10d._get_default_store(), "lrtrain/first left"
    if torch.distributed.get_rank() > 0:
        with contextlib.suppress(RuntimeError):  # it takes too long, or is gone and the store with it
            store.wait([key], PATIENCE)
        return
    try:
        act()
    finally:
        store.set(key, "")


def leave_group() -> None:
    """Leaves the group of processes that a command has joined, while Python still runs.

    A thread of gloo may hold a tensor for some milliseconds after the last collective is done. Where it lets go of it
    when the interpreter has ended already, the process aborts ("terminate called without an active exception"). Not to
    be called after an error: the others may be in a collective, and gloo would wait for them.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        gc.collect()  # modules that hold the group, and with it its threads
        torch.distributed.destroy_process_group()


def end_in_a_lost_group(code: int) -> None:
    """Lets this process end with `code` where Python's own end would be an abort, if it has a group with others.

    To be called after an error. Collectives that nobody answers are still in the hands of gloo's threads, which would
    meet an interpreter that has ended already. So the process ends before that, once threads and what is registered
    with atexit are done.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        _End.code = code


def end_now_if_lost() -> None:
    """Ends the process there; to be registered with atexit before all else, which then comes before it."""
    if _End.code is not None:
        with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads; a stream that is closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(_End.code)


def _meet(decide: Callable[[], Any], address: str, port: int, rank: int, world: int) -> Any:
    from torch.distributed import DistNetworkError, DistStoreError

    try:
        return _decided(decide, f"tcp://{address}:{port}", rank, world)
    except (DistNetworkError, DistStoreError) as error:
        text = " ".join(str(error).split())[:200]
        if "EADDRINUSE" in text:
            raise TemporaryError(
                f"port {port} of this host is in use: set another MASTER_PORT, the same for all"
            ) from None
        who = "others do" if rank == 0 else f"first process, at {address} port {port}, does"
        raise TemporaryError(f"the {who} not answer: {text}") from error


def _decided(decide: Callable[[], Any], where: str, rank: int, world: int) -> Any:
    from torch.distributed import rendezvous

    store, _, _ = next(rendezvous(where, rank, world))
    _stores.append(store)
    key = f"lrtrain/decided/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_calls)}"
    if rank > 0:
        decided, failed = json.loads(store.get(key))
        if store.add(f"{key}/taken", 1) == world - 1:
            store.set(f"{key}/taken by all", "")
        if failed:
            raise SystemExit(2)
        return decided
    decided, failed = None, True
    try:
        decided, failed = decide(), False
    finally:
        store.set(key, json.dumps([decided, failed]))
        store.wait([f"{key}/taken by all"])  # the store ends with this process
    return decided


def gathered(value: Any) -> list[Any]:
    """The `value` of every process by rank, in a collective of the group that they have joined; alone its own."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def raise_on_all(error: UserError | None) -> None:
    """Raises the error of the first process that has one, on all of them, which call this at the same place.

    One that left alone would leave the others in a collective.
    """
    found = next((told for told in gathered(error and (type(error), str(error))) if told is not None), None)
    if found is not None:
        kind, line = found
        raised = kind(line)
        raised.on_all_ranks = True
        raise raised from error


def _first_node(nodes: int) -> tuple[str, int, int]:
    """Address and port of the first of several nodes, and this one's number, from what the user set on each."""
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]:
        raise UserError(
            f"trainer.num_nodes is {nodes}, and {' and '.join(missing)} not set: start under torchrun or srun, or set "
            "on each node the address and a free port of the first one, and NODE_RANK, counted from 0"
        )
    address, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["NODE_RANK"])
    if rank >= nodes:
        raise UserError(f"NODE_RANK is {rank}, but trainer.num_nodes {nodes}: nodes are counted from 0")
    return address, port, rank


def _launcher() -> Any:
    """The environment of a launcher that started several processes at once; None where there is none."""
    from lightning.fabric.plugins.environments import (
        LSFEnvironment,
        MPIEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
        if kind.detect():
            try:
                launcher = kind()
            except RuntimeError as error:  # --ntasks without --ntasks-per-node
                raise UserError(f"launcher: {' '.join(str(error).split())}") from error
            if kind is SLURMEnvironment and launcher.world_size() > 1 and "SLURM_STEP_ID" not in os.environ:
                raise UserError(
                    f"launcher: the Slurm job has {launcher.world_size()} tasks, and this process is none of them: "
                    "put srun before lrtrain"
                )
            return launcher if launcher.world_size() > 1 else None
    return None
