"""Settings of every test: one thread, for the matrices are small, fixed seeds, the same examples in every run."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("lrtrain", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("lrtrain")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
