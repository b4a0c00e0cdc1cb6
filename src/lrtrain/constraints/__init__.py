"""What keeps factorized weights in shape around an optimizer step. torch alone is needed."""

from lrtrain.constraints.attached import attached, left_out, uncovered
from lrtrain.constraints.balance import BalancedRenormalization
from lrtrain.constraints.constrained import ConstrainedOptimizer, lora_muon_for, optimizer_for, sct_for, spectron_for
from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.factors import find_factors, spectral_triples
from lrtrain.constraints.manifold import StiefelRetraction, TangentProjection
from lrtrain.constraints.partner_metric import PartnerMetric
from lrtrain.constraints.preserve import FunctionPreservingRetraction
from lrtrain.constraints.renormalize import SpectralRenormalization

__all__ = [
    "BalancedRenormalization",
    "ConstrainedOptimizer",
    "Constraint",
    "FunctionPreservingRetraction",
    "NothingToHoldError",
    "PartnerMetric",
    "SpectralRenormalization",
    "StiefelRetraction",
    "TangentProjection",
    "attached",
    "find_factors",
    "left_out",
    "lora_muon_for",
    "optimizer_for",
    "sct_for",
    "spectral_triples",
    "spectron_for",
    "uncovered",
]
