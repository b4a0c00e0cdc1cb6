"""What transformers computes of an exported folder, beside what our decoder computes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from lrtrain.data.tokenizer import end_of_text
from lrtrain.nn import Decoder
from lrtrain.nn.projection import projections
from lrtrain.nn.rewriting import dense_weight, factors

BOUND = 1e-4
"""Largest difference of a logit that passes, as a share of the largest logit. Another order of sums in float32 makes a
hundredth of that."""

TEXT = """\
The weather station on the hill had stood empty for eleven years when Maria climbed up to it in March 1987. She found
3 thermometers, a broken barometer and a notebook, its last page dated "14 June". Who had written it, and why did the
numbers stop? def mean(values): return sum(values) / len(values)  # the first thing she wrote there was a program.
Für die Größe der Flächen gilt A = π·r²; l'été fut très chaud, and by the end of it she had filled 240 pages.
"""
"""English, a line of code, and some characters beyond ASCII."""


def text_tokens(tokenizer: Tokenizer, length: int) -> Tensor:
    """Token ids (1, T) of the text, after an end-of-text token, at most `length`."""
    ids = [end_of_text(tokenizer), *tokenizer.encode(TEXT, add_special_tokens=False).ids]
    return torch.tensor([ids[:length]])


@torch.no_grad()
def our_logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Logits (1, T, V) in float32."""
    return decoder.logits(decoder.eval()(tokens))


@torch.no_grad()
def round_weights(decoder: Decoder, dtype: torch.dtype, keep_factors: bool) -> None:
    """Gives the decoder, for good, the weights that were written: those of the dtype, computed with in float32.

    A projection that was written as a dense weight makes and rounds it whenever it is called.
    """
    for name, one in projections(decoder).items():
        if not (keep_factors and factors(one)):
            parent, _, last = name.rpartition(".")
            setattr(decoder.get_submodule(parent), last, _AsWritten(one, dtype))
    inside = [module for module in decoder.modules() if isinstance(module, _AsWritten)]
    unwritten = {id(parameter) for module in inside for parameter in module.parameters()}
    for parameter in decoder.parameters():
        if id(parameter) not in unwritten:
            parameter.copy_(parameter.to(dtype))


@torch.no_grad()
def their_logits(folder: Path, keep_factors: bool, tokens: Tensor) -> tuple[Tensor, int]:
    """Logits (1, T, V) of the folder's model, computed by transformers in float32, and its number of parameters."""
    from transformers import LlamaForCausalLM

    # The folder's file is this one: trust_remote_code would leave another copy in the user's cache.
    from lrtrain.checkpoint.huggingface.modeling_factorized_llama import FactorizedLlamaForCausalLM

    kind = FactorizedLlamaForCausalLM if keep_factors else LlamaForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model(tokens, use_cache=False).logits, sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or warnings of transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


class _AsWritten(nn.Module):
    def __init__(self, projection: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.projection = projection
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, dense_weight(self.projection).to(self.dtype).to(x.dtype))
