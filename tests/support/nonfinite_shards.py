"""A process that holds one shard of a model and asks whether a step is skipped; light, as it starts anew each time."""

from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from lrtrain.optim import CombinedOptimizer
from lrtrain.training.callbacks.nonfinite import NonFiniteGradients


def shard_decides(rank: int, port: int, results: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False))
    fully_shard(module, mesh=distributed.device_mesh.init_device_mesh("cpu", (2,)))
    optimizer = CombinedOptimizer([torch.optim.AdamW(module.named_parameters())])
    strategy = SimpleNamespace(reduce=ModelParallelStrategy().reduce, root_device=torch.device("cpu"))
    run: Any = SimpleNamespace(strategy=strategy, global_step=0, precision_plugin=None)
    callback, decisions = NonFiniteGradients(stop_after=2), []
    for bad in (False, True, True):
        optimizer.zero_grad()
        module(torch.ones(2, 4)).sum().backward()
        first: Any = module[0].weight.grad
        if bad and rank == 0:
            first.to_local()[0, 0] = float("nan")
        callback.on_before_optimizer_step(run, module, optimizer)  # type: ignore[arg-type]
        decisions.append(optimizer.skip_step)
        optimizer.step()
    results.put((decisions, str(callback._stop)))
    distributed.barrier()
    distributed.destroy_process_group()
