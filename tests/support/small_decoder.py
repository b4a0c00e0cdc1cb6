"""A decoder of random weights that tells its tokens apart."""

from typing import Any

from lrtrain.nn import Decoder, DenseLinear

VOCAB = 97


def decoder(linear: Any = DenseLinear, **changes: Any) -> Decoder:
    """In evaluation; 3 blocks of 4 heads."""
    sizes = {"vocab_size": VOCAB, "width": 48, "depth": 3, "heads": 4, "ffn_width": 80, "embedding_std": 0.5}
    return Decoder(**{"attention": linear, "mlp": linear, **sizes, **changes}).eval()
