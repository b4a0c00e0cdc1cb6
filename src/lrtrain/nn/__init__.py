"""The decoder and the ways to write its projections. torch alone is needed."""

from lrtrain.nn.decoder import Decoder
from lrtrain.nn.dense import DenseLinear
from lrtrain.nn.factorize import Factorization, factorize_, merge_
from lrtrain.nn.factorized import FactorizedProjection
from lrtrain.nn.generation import (
    Continuation,
    Sampling,
    TextStream,
    feed,
    generate,
    order_for_decoding,
    text_after,
)
from lrtrain.nn.kv_cache import KVCache
from lrtrain.nn.loss import LossCallable, losses_by_position, next_token_loss
from lrtrain.nn.lowrank import LowRankLinear
from lrtrain.nn.projection import LinearCallable, Projection, as_projections, projections
from lrtrain.nn.rope_scaling import RopeScaling
from lrtrain.nn.self_guided import SelfGuidedLinear
from lrtrain.nn.spectral import SpectralLinear

__all__ = [
    "Continuation",
    "Decoder",
    "DenseLinear",
    "Factorization",
    "FactorizedProjection",
    "KVCache",
    "LinearCallable",
    "LossCallable",
    "LowRankLinear",
    "Projection",
    "RopeScaling",
    "Sampling",
    "SelfGuidedLinear",
    "SpectralLinear",
    "TextStream",
    "as_projections",
    "factorize_",
    "feed",
    "generate",
    "losses_by_position",
    "merge_",
    "next_token_loss",
    "order_for_decoding",
    "projections",
    "text_after",
]
