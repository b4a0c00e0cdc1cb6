"""A disk that is full for one process of a run, from its third step on."""

import errno
import os
import threading
from typing import Any

import lightning as L
from torch.distributed.checkpoint import FileSystemWriter

from lrtrain.checkpoint import single_file


class NoRoom(L.Callback):
    """Lets no file of a checkpoint after step 2 be written: the first process's file, the last one's shards."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if trainer.global_step == 3:
            for thread in threading.enumerate():
                if thread.name == "checkpoint-writer":  # of step 2
                    thread.join()
            if trainer.is_global_zero:
                single_file.replacing = refuse
            if trainer.global_rank == trainer.world_size - 1:
                FileSystemWriter.write_data = refuse  # type: ignore[method-assign]
