"""A checkpoint written while training goes on: its copy in host memory, and the thread that writes it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from lrtrain.runtime.liveness import beat

_COPIED = (dict, list, tuple, set)


class BackgroundWriter:
    """Writes one checkpoint at a time in a thread; what the thread raises is kept until `wait`.

    Passed to the strategy as `storage_options` of a save, it says that the save may return before the file is there.
    The thread is no daemon: a process that ends in a way that Python knows waits for it.

    Args:
        then: Called in the thread with the path of a checkpoint that is whole.

    Attributes:
        group: The processes that write together, over gloo and for these threads alone: collectives of two threads in
            one group would meet each other's. None where one process writes.
    """

    def __init__(self, then: Callable[[Path], None]) -> None:
        self.group: ProcessGroup | None = None
        self._then = then
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._pinned: list[Tensor] = []

    @property
    def failed(self) -> bool:
        return self._error is not None

    def start(self, checkpoint: Any, path: Path, write: Callable[[Any], None]) -> None:
        """Copies the checkpoint to host memory and returns; `write(copy)` goes on in the thread."""
        assert self._thread is None, "wait for the checkpoint in flight first"
        copy = on_host(checkpoint, self._pinned)
        self._thread = threading.Thread(target=self._run, args=(copy, path, write), name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> Exception | None:
        """Waits for the checkpoint in flight, if there is one, and returns what went wrong with it."""
        if self._thread is not None:
            while self._thread.is_alive():
                self._thread.join(1)
                beat()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _run(self, copy: Any, path: Path, write: Callable[[Any], None]) -> None:
        try:
            write(copy)
            self._then(path)
        except Exception as error:  # the main thread raises it at the next step boundary
            self._error = error


def on_host(tree: Any, pinned: list[Tensor]) -> Any:
    """A copy of nested containers whose tensors nothing changes any more, in host memory.

    Tensors that share memory share it in the copy, so that a file made of it has the same bytes. What comes from a GPU
    goes through `pinned`, page-locked buffers that stay for the next copy of the same sizes.
    """
    buffers, kept = _Buffers(pinned), {}

    def copied(node: Any) -> Any:
        if isinstance(node, DTensor):
            return node.detach().to("cpu", copy=True)
        if isinstance(node, Tensor):
            return tensor(node)
        if isinstance(node, dict):
            return type(node)((key, copied(item)) for key, item in node.items())
        if type(node) in _COPIED:
            return type(node)(map(copied, node))
        return node

    def tensor(node: Tensor) -> Tensor:
        if node.is_meta:
            return node
        if node.layout != torch.strided:
            return node.detach().to("cpu", copy=True)
        storage = node.untyped_storage()
        if not storage.nbytes():
            return node.detach().to("cpu", copy=True)
        if storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = buffers.filled(
                torch.empty(0, dtype=torch.uint8, device=node.device).set_(storage)
            )
        host = kept[storage.data_ptr()].untyped_storage()
        return torch.empty(0, dtype=node.dtype).set_(host, node.storage_offset(), node.size(), node.stride())

    copy = copied(tree)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copy


class _Buffers:
    """Bytes in host memory, one buffer after another; those for a GPU's are page-locked and used again in order."""

    def __init__(self, pinned: list[Tensor]) -> None:
        self._pinned, self._next = pinned, 0

    def filled(self, source: Tensor) -> Tensor:
        if not source.is_cuda:
            return source.to("cpu", copy=True)
        index, self._next = self._next, self._next + 1
        if index == len(self._pinned) or len(self._pinned[index]) != len(source):
            self._pinned[index:] = [torch.empty(len(source), dtype=torch.uint8, pin_memory=True)]
        return self._pinned[index].copy_(source, non_blocking=True)
