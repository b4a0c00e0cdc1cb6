"""What keeps factorized weights in shape around an optimizer step. torch alone is needed."""

from lrtrain.constraints.attached import attached, left_out
from lrtrain.constraints.balance import BalancedRenormalization
from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.preserve import FunctionPreservingRetraction
from lrtrain.constraints.renormalize import SpectralRenormalization
from lrtrain.constraints.retract import StiefelRetraction
from lrtrain.constraints.structure import spectral_triples, structure
from lrtrain.constraints.tangent import TangentProjection

__all__ = [
    "BalancedRenormalization",
    "Constraint",
    "FunctionPreservingRetraction",
    "NothingToHoldError",
    "SpectralRenormalization",
    "StiefelRetraction",
    "TangentProjection",
    "attached",
    "left_out",
    "spectral_triples",
    "structure",
]
