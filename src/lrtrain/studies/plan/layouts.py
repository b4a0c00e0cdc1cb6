"""How processes share a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrtrain.runtime.errors import UserError

STRATEGIES = ("ddp", "fsdp", "hsdp")
NODE = 8
"""Processes of a node where nothing says otherwise: the shards of one copy under hsdp."""


@dataclass(frozen=True)
class Layout:
    """`replicas` copies of a model, each cut by rows into `shards`."""

    strategy: str
    replicas: int
    shards: int

    @property
    def devices(self) -> int:
        return self.replicas * self.shards


def layouts(devices: Sequence[int], strategies: Sequence[str], shards: int | None) -> list[Layout]:
    """Each strategy on each number of devices; on one device there is nothing to share, so it is one line.

    Args:
        devices: Numbers of processes.
        strategies: Of `STRATEGIES`.
        shards: Processes of one copy under hsdp; None: the largest divisor of the number that is at most 8 and leaves
            two copies.

    Raises:
        UserError: an unknown strategy, a number below 1, or one that `shards` does not divide.
    """
    for name in strategies:
        if name not in STRATEGIES:
            raise UserError(f"--strategies {name}: unknown strategy; give some of {', '.join(STRATEGIES)}")
    if shards is not None and shards < 1:
        raise UserError(f"--shards {shards}: processes that share one copy of the model, at least 1")
    found: list[Layout] = []
    for number in devices:
        if number < 1:
            raise UserError(f"--devices {number}: give numbers of processes, at least 1")
        if number == 1:
            found.append(Layout("one device", 1, 1))
            continue
        found += [Layout(name, *_mesh(name, number, shards)) for name in strategies]
    return list(dict.fromkeys(found))


def _mesh(strategy: str, devices: int, shards: int | None) -> tuple[int, int]:
    """(replicas, shards)."""
    if strategy == "ddp":
        return devices, 1
    if strategy == "fsdp":
        return 1, devices
    if shards is None:
        shards = max(d for d in range(1, min(NODE, devices // 2) + 1) if devices % d == 0)
    if devices % shards:
        raise UserError(
            f"--devices {devices}: hsdp cannot make copies of {shards} shards of it; give --shards a divisor of it"
        )
    return devices // shards, shards
