"""Continuing token sequences: the engine, the rules by which tokens are drawn, and their text as it comes."""

from lrtrain.nn.generation.engine import Continuation, feed, generate
from lrtrain.nn.generation.on_cpu import order_for_decoding
from lrtrain.nn.generation.sampling import Sampling
from lrtrain.nn.generation.text_stream import TextStream, text_after

__all__ = ["Continuation", "Sampling", "TextStream", "feed", "generate", "order_for_decoding", "text_after"]
