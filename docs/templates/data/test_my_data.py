from pathlib import Path

import pytest
from my_data import MyData


def test_batches_are_blocks_of_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 4)
    data = MyData(str(tmp_path / "*.txt"), block_size=15, batch_size=4)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.shape == (4, 16)
    assert ((batch[:, 1:] - batch[:, :-1]) % 256 == 1).all()


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="less than two blocks"):
        MyData(str(tmp_path / "*.txt")).setup("fit")
