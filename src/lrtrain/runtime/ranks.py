"""What the first process decides for all, before torch connects them; and which process prints an error."""

import gc
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from lrtrain.runtime.errors import UserError

DECIDED = "LRTRAIN_DECIDED"
"""Hands what was decided to the processes that Lightning starts."""

_calls = itertools.count()
_stores: list[Any] = []
"""Kept: the server ends with the first process's store, and torch connects to the same one later."""


def is_first() -> bool:
    """Whether this is the first process of the run, from what torchrun, Slurm or Lightning tell it."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def decide_on_rank_zero(decide: Callable[[], Any]) -> Any:
    """Calls `decide` on the first process and returns its result, plain JSON values, on every process.

    Processes that Lightning starts find it in the environment. Those of torchrun, Slurm, LSF or MPI, which start all at
    once, meet at the address where torch connects them later.

    Raises:
        UserError: `decide` did, on the first process; the others end with exit code 2 and without a word.
    """
    launcher = _launcher()
    if launcher is None:
        if is_first() or DECIDED not in os.environ:
            os.environ[DECIDED] = json.dumps(decide())
        return json.loads(os.environ[DECIDED])
    from torch.distributed import rendezvous

    rank, world = launcher.global_rank(), launcher.world_size()
    store, _, _ = next(rendezvous(f"tcp://{launcher.main_address}:{launcher.main_port}", rank, world))
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


def exit_code(error: UserError) -> int:
    """The error's exit code; 0 for a process that Lightning started where all raise it.

    Lightning kills the first process, which may still be writing, when one that it started ends with anything else.
    """
    started_by_lightning = error.on_all_ranks and not is_first() and DECIDED in os.environ and _launcher() is None
    return 0 if started_by_lightning else error.exit_code


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
            return launcher if launcher.world_size() > 1 else None
    return None
