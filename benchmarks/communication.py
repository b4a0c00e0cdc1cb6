"""Bytes that Spectron's step communicates with its factors' rows on two processes, counted, against gathering them.

    python -m benchmarks.communication

`payload` counts the bytes of the buffers that a process hands to collectives, all-reduce as all-gather. On the wire a
ring all-reduce moves each byte twice, an all-gather once: `wire ratio` counts that too.
"""

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from benchmarks.measure import command_line, report
from benchmarks.shapes import SIZES, factor_shapes, pairs_of
from lrtrain.constraints import SpectralRenormalization
from lrtrain.optim import Spectron

PROCESSES = 2
BYTES = 4
REQUIRED = 0.25


def count(rank: int, port: int, size: str, results: Any) -> None:
    """One process: a step on sharded factors, every all-reduce counted and any other collective an error."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
    }
    mesh = init_device_mesh("cpu", (PROCESSES,))
    factors = []
    for shape in factor_shapes(size):
        x = nn.Parameter(distribute_tensor(torch.randn(shape) * 0.02, mesh, [Shard(0)], src_data_rank=None))
        x.grad = torch.ones_like(x)
        factors.append(x)
    optimizer, constraint = Spectron(factors, lr=0.01), SpectralRenormalization().hold(pairs_of(factors))
    constraint.before_step(optimizer)  # the first takes more power steps
    optimizer.step()
    calls: list[int] = []
    reduce = dist.all_reduce

    def counted(tensor: Tensor, **options: Any) -> Any:
        calls.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, **options)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the step uses a collective that is not counted")

    replaced: Any = dist
    replaced.all_reduce = counted
    replaced.all_gather_into_tensor = replaced.all_gather = replaced.broadcast = refused
    constraint.before_step(optimizer)
    optimizer.step()
    if rank == 0:
        results.put(calls)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    context = processes.get_context("spawn")
    table = []
    for size in SIZES:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        results = context.SimpleQueue()
        processes.spawn(count, (port, size, results), PROCESSES)
        calls = results.get()
        gathered = sum(rows * rank for rows, rank in factor_shapes(size)) * BYTES
        table.append(
            {
                "size": size,
                "collectives": len(calls),
                "payload MB": sum(calls) / 1e6,
                "gathering MB": gathered / 1e6,
                "wire ratio": 2 * sum(calls) / gathered,
                "ratio": sum(calls) / gathered,
                "required": REQUIRED,
                "met": sum(calls) / gathered <= REQUIRED,
            }
        )
    report(table, "communication", arguments.out)


if __name__ == "__main__":
    main()
