"""Signs of life of a run, for a liveness probe."""

from pathlib import Path
from typing import Any

import lightning as L

from lrtrain.runtime import liveness


class Heartbeat(L.Callback):
    """Touches a file at every micro-batch of training and validation and around every checkpoint, at most once a
    second, on the first process of each node.

    Its age is the time since the run last got on: other parts that take long (preparation, writing a checkpoint) touch
    it as they go. It is absent until the first of them, so a startup probe waits for the file and a liveness probe
    compares its age with the longest single step, compilation or checkpoint. A process that hangs, or waits for one
    that does, lets it grow old. The file belongs to one node: a volume of the pod's own, not one that pods share.

    Args:
        file: the file to touch; null: none.

    Raises:
        UserError: the file cannot be made there, or is one that holds something.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = file

    def start(self, local_rank: int) -> None:
        """Begins the beats of this process, before anything that takes long; ends those of a run before it."""
        if self.file is None or local_rank > 0:
            liveness.stop()
        else:
            liveness.start(Path(self.file))

    def _beat(self, *_: Any, **__: Any) -> None:
        liveness.beat()

    on_train_start = on_train_batch_end = on_train_end = _beat
    on_validation_start = on_validation_batch_end = on_validation_end = _beat
    on_test_batch_end = on_save_checkpoint = _beat
