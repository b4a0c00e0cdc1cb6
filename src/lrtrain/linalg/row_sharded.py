"""Matrices whose rows may be spread over processes: what is local, and small results summed over all of them."""

from collections.abc import Sequence
from typing import overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lrtrain.linalg.full_float32 import full_float32


def local(x: Tensor) -> Tensor:
    """This process's rows of x, without a copy; x itself where it is not a DTensor.

    Raises:
        ValueError: a DTensor that is sharded by columns or holds partial sums.
    """
    if not isinstance(x, DTensor):
        return x
    for placement in x.placements:
        if not placement.is_replicate() and placement != Shard(0):
            raise ValueError(
                f"a matrix of shape {tuple(x.shape)} is laid out as {tuple(x.placements)}: the Gram matrix needs whole "
                "rows on each process, so shard by rows (FSDP2), not by columns (tensor parallel)"
            )
    return x.to_local()


def with_local(rows: Tensor, like: Tensor) -> Tensor:
    """The counterpart of `local`: this process's rows as a tensor that is laid out as `like`."""
    if not isinstance(like, DTensor):
        return rows
    shape = torch.Size((like.shape[0], *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def gathered(x: Tensor) -> Tensor:
    """x whole on every process; x itself where it is not a DTensor."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """The counterpart of `gathered`: a tensor that every process holds, laid out as `like`; nothing is communicated."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.contiguous(), like.device_mesh, like.placements, src_data_rank=None)


def process_groups(x: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups over which the rows of x are spread, none where x is whole on every process."""
    if not isinstance(x, DTensor):
        return ()
    mesh = x.device_mesh
    return tuple(mesh.get_group(i) for i, p in enumerate(x.placements) if p == Shard(0) and mesh.size(i) > 1)


def all_reduce(
    tensors: Sequence[Tensor], groups: Sequence[dist.ProcessGroup], op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> list[Tensor]:
    """The tensors reduced over the groups through one flat buffer: one collective a group, however many tensors.

    Args:
        tensors: Of one dtype and device; every process passes equal shapes.
        groups: As `process_groups` gives them; with none the tensors come back as they are.
    """
    if not groups or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    for group in groups:
        dist.all_reduce(flat, op=op, group=group)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def all_reduce_symmetric(grams: Sequence[Tensor], groups: Sequence[dist.ProcessGroup]) -> list[Tensor]:
    """Sums symmetric matrices (…, r, r) over the groups; only r (r + 1) / 2 numbers of each are communicated."""
    if not groups:
        return list(grams)
    corners = [torch.triu_indices(g.shape[-1], g.shape[-1], device=g.device) for g in grams]
    packed = all_reduce([g[..., i, j] for g, (i, j) in zip(grams, corners, strict=True)], groups)
    whole = []
    for gram, values, (i, j) in zip(grams, packed, corners, strict=True):
        full = torch.empty_like(gram)
        full[..., i, j] = values
        full[..., j, i] = values
        whole.append(full)
    return whole


def as_float(x: Tensor) -> Tensor:
    """x in the dtype of the computation: float64 for a float64 input, else float32."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
@full_float32()
def inner(x: Tensor, y: Tensor) -> Tensor:
    """XᵀY of matrices X (…, m, k) and Y (…, m, r), whole or with rows sharded in the same way.

    Returns:
        (…, k, r), a plain tensor that every process holds whole; float32 (float64 for float64 inputs).
    """
    (product,) = all_reduce([as_float(local(x)).mT @ as_float(local(y))], process_groups(x))
    return product


@overload
def gram(x: Tensor) -> Tensor: ...
@overload
def gram(x: Sequence[Tensor]) -> list[Tensor]: ...
@torch.no_grad()
@full_float32()
def gram(x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """XᵀX as `inner(x, x)`, with half of what that communicates."""
    if isinstance(x, Tensor):
        return gram([x])[0]
    rows = [as_float(local(a)) for a in x]
    return all_reduce_symmetric([a.mT @ a for a in rows], process_groups(x[0]) if len(x) else ())
