"""The decoder and the ways to write its projections. torch alone is needed."""

from lrtrain.nn.decoder import Decoder, KVCache
from lrtrain.nn.dense import DenseLinear
from lrtrain.nn.factorised import FactorisedProjection
from lrtrain.nn.loss import next_token_loss
from lrtrain.nn.lowrank import LowRankLinear
from lrtrain.nn.projection import LinearCallable, Projection
from lrtrain.nn.sampling import sample
from lrtrain.nn.selfguided import SelfGuidedLinear
from lrtrain.nn.spectral import SpectralLinear

__all__ = [
    "Decoder",
    "DenseLinear",
    "FactorisedProjection",
    "KVCache",
    "LinearCallable",
    "LowRankLinear",
    "Projection",
    "SelfGuidedLinear",
    "SpectralLinear",
    "next_token_loss",
    "sample",
]
