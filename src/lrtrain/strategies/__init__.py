"""Training on several processes: FSDP2 for Lightning, and what is refused beside it."""

from lrtrain.strategies.fsdp import FSDP
from lrtrain.strategies.supported import check_strategy

__all__ = ["FSDP", "check_strategy"]
