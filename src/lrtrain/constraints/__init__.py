"""What keeps factorized weights in shape: plain objects with `before_step` and `after_step`. torch alone is needed."""

from lrtrain.constraints.balance import BalancedRenormalization, column_scaled
from lrtrain.constraints.constraint import Constraint
from lrtrain.constraints.preserve import FunctionPreservingRetraction
from lrtrain.constraints.renormalize import SpectralRenormalization, takes_step_scale
from lrtrain.constraints.retract import StiefelRetraction
from lrtrain.constraints.structure import spectral_triples, structure
from lrtrain.constraints.tangent import TangentProjection

__all__ = [
    "BalancedRenormalization",
    "Constraint",
    "FunctionPreservingRetraction",
    "SpectralRenormalization",
    "StiefelRetraction",
    "TangentProjection",
    "column_scaled",
    "spectral_triples",
    "structure",
    "takes_step_scale",
]
