"""What keeps factorised weights in shape: plain objects with `before_step` and `after_step`. torch alone is needed."""

from lrtrain.constraints.constraint import Constraint
from lrtrain.constraints.renormalize import SpectralRenormalization, takes_step_scale
from lrtrain.constraints.retract import StiefelRetraction
from lrtrain.constraints.structure import structure

__all__ = ["Constraint", "SpectralRenormalization", "StiefelRetraction", "structure", "takes_step_scale"]
