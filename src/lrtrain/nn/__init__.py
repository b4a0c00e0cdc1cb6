"""The decoder and the ways to write its projections. torch alone is needed."""

from lrtrain.nn.decoder import Decoder, KVCache
from lrtrain.nn.dense import DenseLinear
from lrtrain.nn.factorize import Factorization, factorize_, merge_
from lrtrain.nn.factorized import FactorizedProjection
from lrtrain.nn.loss import LossCallable, next_token_loss
from lrtrain.nn.lowrank import LowRankLinear
from lrtrain.nn.projection import LinearCallable, Projection, as_projections, projections
from lrtrain.nn.sampling import sample, text_after
from lrtrain.nn.self_guided import SelfGuidedLinear
from lrtrain.nn.spectral import SpectralLinear

__all__ = [
    "Decoder",
    "DenseLinear",
    "Factorization",
    "FactorizedProjection",
    "KVCache",
    "LinearCallable",
    "LossCallable",
    "LowRankLinear",
    "Projection",
    "SelfGuidedLinear",
    "SpectralLinear",
    "as_projections",
    "factorize_",
    "merge_",
    "next_token_loss",
    "projections",
    "sample",
    "text_after",
]
