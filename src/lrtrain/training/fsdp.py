"""Fully sharded training (FSDP2): each process holds some rows of every weight, gradient and optimizer state."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lrtrain.checkpoint import shard_folder as sharded
from lrtrain.checkpoint.background import BackgroundWriter
from lrtrain.checkpoint.checkpoint_io import check_architecture
from lrtrain.nn import Decoder
from lrtrain.optim import shard_like
from lrtrain.runtime.errors import UserError


class FSDP(ModelParallelStrategy):
    """FSDP2 with every block of the decoder as one unit, on GPUs (NCCL) and CPUs (gloo).

    A weight stays a matrix, cut by rows (a `DTensor` with `Shard(0)`; shards may be uneven), so that a Gram matrix is a
    sum over shards. Blocks are gathered when they are used and freed after, embedding and head stay until the backward
    pass has ended. Master weights, gradients' sums and optimizer states are float32. Under `bf16-mixed` compute is
    autocast's, as on one process, and where torch allows a dtype for each parameter (2.15), a block's matrices are
    gathered in bfloat16: the numbers are the same and half the bytes travel. The decoder then works under autocast
    alone.

    Every process draws the same initial weights from the seed and keeps its rows, so that a run starts from the same
    weights on any number of processes. Checkpoints are folders of shards (`checkpoint.shard_folder`); whole files are
    read as well.

    Args:
        shards: Processes that share one copy of the model; null: all of them / replicas.
        replicas: Copies of the model (hybrid sharding); shards · replicas is the number of processes.
        timeout_minutes: How long a collective waits for a process that does not answer.

    Raises:
        UserError: shards · replicas is not the number of processes.
    """

    def __init__(self, shards: int | None = None, replicas: int = 1, timeout_minutes: float = 30.0) -> None:
        for name, value in (("shards", shards), ("replicas", replicas), ("timeout_minutes", timeout_minutes)):
            if value is not None and value <= 0:
                raise UserError(f"trainer.strategy.{name} is {value}: give at least 1")
        self.timeout = timedelta(minutes=timeout_minutes)
        super().__init__(timeout=self.timeout)
        self.shards = shards
        self.replicas = replicas
        self._loaded = Path()

    def _configure_launcher(self) -> None:
        self._mesh_sizes()  # before any process is started
        super()._configure_launcher()

    def _mesh_sizes(self) -> tuple[int, int]:
        """(replicas, shards) for the number of processes that there are."""
        processes = self.num_nodes * self.num_processes
        shards = self.shards or processes // self.replicas
        if self.replicas * shards != processes:
            asked = f"{self.replicas} replicas" + (f" of {self.shards} shards" if self.shards else "")
            raise UserError(
                f"trainer.strategy: {asked} do not fit {processes} processes (devices · num_nodes); set shards and "
                "replicas so that their product is that number"
            )
        return self.replicas, shards

    def setup_environment(self) -> None:
        self._setup_distributed()
        mesh = init_device_mesh(self.root_device.type, self._mesh_sizes(), mesh_dim_names=("replicate", "shard"))
        self._device_mesh = mesh if self.replicas > 1 else mesh["shard"]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def shard(self, decoder: Decoder) -> None:
        """Cuts a decoder that is whole on every process, in place, before its optimizer is made."""
        mixed = getattr(self.precision_plugin, "precision", None) == "bf16-mixed"
        for block in decoder.blocks:
            fully_shard(block, mesh=self.device_mesh, mp_policy=_block_policy() if mixed else MixedPrecisionPolicy())
        fully_shard(decoder, mesh=self.device_mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        for method in ("loss", "logits"):
            register_fsdp_forward_method(decoder, method)

    @property
    def lightning_restore_optimizer(self) -> bool:
        # ModelParallelStrategy leaves it to torch, which matches the states of whole files by their order, and takes a
        # step with zero gradients to make room for them.
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's weights, each process's own rows."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: BackgroundWriter | None = None
    ) -> None:
        """Every process writes its shards; the folder appears under its name when all of it is on disk, which may be
        later where `storage_options` writes it.
        """
        path = Path(self.broadcast(filepath))
        if storage_options is None:
            sharded.write_sharded(checkpoint, path)
        else:
            write = partial(sharded.write_sharded, path=path, group=storage_options.group)
            storage_options.start(checkpoint, path, write)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """A whole file with its tensors, or a folder with meta tensors for what `load_…` then reads of it."""
        self._loaded = Path(self.broadcast(checkpoint_path))
        if not self._loaded.is_dir():
            return self.checkpoint_io.load_checkpoint(self._loaded, weights_only=weights_only)
        return sharded.read_tree(self._loaded, lazily=("state_dict", "optimizer_states"))

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        saved = checkpoint["state_dict"]
        check_architecture(checkpoint, self.lightning_module, self._loaded, strict)
        own = {name: own for name, own in self.lightning_module.state_dict().items() if name in saved}
        inside = {f"state_dict/{name}": tensor for name, tensor in own.items() if saved[name].is_meta}
        sharded.read_into(self._loaded, inside)
        for name, tensor in own.items():
            if not saved[name].is_meta:
                tensor.copy_(shard_like(saved[name], tensor))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for index, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            optimizer.load_state_dict(_with_shards(saved, optimizer, self._loaded, f"optimizer_states/{index}"))


def _block_policy() -> MixedPrecisionPolicy:
    options: dict[str, Any] = {}
    if "param_dtype_override_fn" in {field.name for field in fields(MixedPrecisionPolicy)}:
        # Autocast would round the matrices, and only these, to bfloat16 anyway.
        options = {"param_dtype": torch.bfloat16, "param_dtype_override_fn": _vectors_in_float32}
    return MixedPrecisionPolicy(**options, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _vectors_in_float32(parameter: nn.Parameter) -> torch.dtype | None:
    return torch.float32 if parameter.ndim < 2 else None


def _with_shards(saved: dict[str, Any], optimizer: Optimizer, folder: Path, where: str) -> dict[str, Any]:
    """An optimizer's saved state with its meta tensors, if any, read from a folder, each cut as its parameter is."""
    own = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    state = {number: dict(values) for number, values in saved["state"].items()}
    wanted: dict[str, Tensor] = {}
    for group in saved["param_groups"]:
        for name, number in zip(group["param_names"], group["params"], strict=True):
            for key, value in state.get(number, {}).items():
                if name in own and isinstance(value, Tensor) and value.is_meta:
                    wanted[f"{where}/state/{number}/{key}"] = state[number][key] = _empty(value, own[name])
    sharded.read_into(folder, wanted)
    return {**saved, "state": state}


def _empty(value: Tensor, parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    return torch.empty(value.shape, dtype=value.dtype, device=parameter.device)
