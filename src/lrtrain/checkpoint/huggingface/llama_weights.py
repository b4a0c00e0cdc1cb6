"""The weights of transformers' Llama as our decoder's, and a comparison of what both compute."""

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lrtrain.checkpoint.huggingface import logit_check
from lrtrain.checkpoint.huggingface.llama_layout import llama_name
from lrtrain.nn import Decoder
from lrtrain.runtime.errors import UserError


def take_weights(model: Any, decoder: Decoder, text: str) -> None:
    """Gives a decoder without memory the very tensors of transformers' model.

    Raises:
        UserError: a weight is not finite, or of another shape than the decoder's.
    """
    theirs = dict(model.named_parameters())
    state: dict[str, Tensor] = {}
    for name, wanted in decoder.state_dict().items():
        place = f"{llama_name(name.removesuffix('.weight'))}.weight"
        weight = theirs[place].detach()
        if weight.shape != wanted.shape:
            raise UserError(f"import {text}: {place} is {tuple(weight.shape)}, expected {tuple(wanted.shape)}")
        if not weight.isfinite().all():
            raise UserError(f"import {text}: {place} holds NaN or infinite numbers")
        # A checkpoint would hold all of the memory that a view is of.
        state[name] = weight if weight.untyped_storage().nbytes() == weight.nbytes else weight.clone()
    decoder.load_state_dict(state, assign=True)
    decoder.eval()


@torch.no_grad()
def compare(model: Any, decoder: Decoder, tokenizer: Tokenizer, text: str) -> str:
    """How far our logits are from transformers', in words.

    Raises:
        UserError: they differ by more than another order of sums makes.
    """
    tokens = logit_check.text_tokens(tokenizer, model.config.max_position_embeddings)
    theirs = model(tokens, use_cache=False).logits
    ours = logit_check.our_logits(decoder, tokens)
    difference, bound = float((theirs - ours).abs().max()), logit_check.BOUND * float(theirs.abs().max())
    if not difference <= bound:
        raise UserError(
            f"import {text}: our logits differ from transformers' by up to {difference:.1e}, more than {bound:.1e}: it "
            "computes something that config.json does not say, and nothing was written"
        )
    return (
        f"ours differ from transformers' by at most {difference:.1e}, bound {bound:.1e}, over {tokens.numel()} tokens"
    )
