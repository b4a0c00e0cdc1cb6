"""A LightningDataModule: bytes of text files as tokens."""

from glob import glob
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader


class MyData(L.LightningDataModule):
    """Blocks of bytes, in batches of shape (batch_size, block_size + 1), int64; the last tenth is held out.

    Args:
        files: Which files, as a glob.
        block_size: Tokens that the model sees at once.
        batch_size: Blocks of a batch of one process.
    """

    def __init__(self, files: str = "*.txt", block_size: int = 256, batch_size: int = 16) -> None:
        super().__init__()
        self.files = files
        self.block_size = block_size
        self.batch_size = batch_size
        self._blocks: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        content = b"".join(Path(file).read_bytes() for file in sorted(glob(self.files)))
        count = len(content) // (self.block_size + 1)
        if count < 2:
            raise ValueError(f"data.files {self.files}: {len(content)} bytes are less than two blocks; name more text")
        blocks = torch.frombuffer(bytearray(content), dtype=torch.uint8)[: count * (self.block_size + 1)]
        blocks = blocks.view(count, self.block_size + 1).long()
        held_out = max(1, count // 10)
        self._blocks = {"train": blocks[:-held_out], "val": blocks[-held_out:]}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._blocks["train"], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._blocks["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    # These may be left out; a line at the start of a run says what there is not without them.

    def check(self, vocab_size: int) -> None:
        if vocab_size < 256:
            raise ValueError(f"the model's vocab_size is {vocab_size}, and there are 256 bytes")

    def bytes_per_token(self) -> float:
        return 1.0
