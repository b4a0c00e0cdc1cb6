"""A Llama-style decoder: RMSNorm, rotary positions, causal attention, SwiGLU, no biases.

Shape suffixes: B batch, T tokens, D model width, H query heads, K key-value heads, E width of
one head, F feed-forward width, V vocabulary. `x_BTD` has shape (batch, tokens, width).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lrtrain.nn.initial_scale import InitialScale, check_initial_scale, rescale
from lrtrain.nn.kv_cache import KVCache
from lrtrain.nn.loss import LossCallable, next_token_loss
from lrtrain.nn.projection import LinearCallable, as_projections, override, projections
from lrtrain.nn.rope_scaling import RopeScaling
from lrtrain.nn.rotary import rotary_angles, rotate


class Decoder(nn.Module):
    """Token ids to hidden states; `head_VD` turns these into logits.

    The decoder never names a parameterization: `attention` and `mlp` make the projections, each called as
    (in_features, out_features). They may be `Projection`s or any modules of that shape. A subclass that makes more of
    them does it through `as_projections`.

    Args:
        vocab_size: Tokens of the vocabulary.
        width: Model width.
        depth: Blocks.
        heads: Query heads; their width is width / heads and must be even.
        ffn_width: Feed-forward width.
        attention: Makes the query, key, value and output projections.
        mlp: Makes the gate, up and down projections.
        kv_heads: Key-value heads, a divisor of heads (grouped-query attention); as many as heads when null.
        tie_embeddings: Share the embedding with the output head.
        rope_base: Base of the rotary frequencies.
        norm_eps: ε of RMSNorm.
        embedding_std: Standard deviation of the embedding's and the head's normal initialization.
        rope_scaling: How the rotary frequencies are lowered, in a model whose context was lengthened; null leaves them.
        overrides: Makers of projections by a pattern of their names (`blocks.0.mlp.*`, `*.attention.key`), for those
            that differ from `attention` and `mlp`; the first that matches wins.
        initial_scale: Standard deviation of the entries of every W: `fan_in` is 1/√in_features, `width` √2 / width,
            `gpt2` 0.02 and, where the output is added to the residual stream, 0.02/√(2 · depth); or a number.

    Raises:
        ValueError: sizes that do not fit one another, or a pattern that no projection's name matches.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        depth: int,
        heads: int,
        ffn_width: int,
        attention: LinearCallable,
        mlp: LinearCallable,
        kv_heads: int | None = None,
        tie_embeddings: bool = False,
        rope_base: float = 10000.0,
        norm_eps: float = 1e-5,
        embedding_std: float = 0.02,
        rope_scaling: RopeScaling | None = None,
        overrides: dict[str, LinearCallable] | None = None,
        initial_scale: InitialScale = "fan_in",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        sizes = {"vocab_size": vocab_size, "width": width, "depth": depth, "heads": heads, "ffn_width": ffn_width}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, number in {"rope_base": rope_base, "norm_eps": norm_eps, "embedding_std": embedding_std}.items():
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be finite and positive, got {number}")
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 · heads, got width {width} with {heads} heads")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {heads} and {kv_heads}")
        check_initial_scale(initial_scale)
        attention, mlp = as_projections(attention), as_projections(mlp)
        self.width = width
        self.rope_base = rope_base
        self.rope_scaling = rope_scaling
        self.head_width = width // heads
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, kv_heads, ffn_width, attention, mlp, norm_eps) for _ in range(depth)
        )
        override(self, overrides or {})
        blocks: Any = self.blocks
        residual = [one for block in blocks for one in (block.attention.output, block.mlp.down)]
        rescale(self, initial_scale, width, depth, residual)
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        nn.init.normal_(self.embedding.weight, std=embedding_std)
        if tie_embeddings:
            self.head = None
        else:
            self.head = nn.Linear(width, vocab_size, bias=False)
            nn.init.normal_(self.head.weight, std=embedding_std)

    @property
    def head_VD(self) -> Tensor:  # noqa: N802
        """The output head's weight (vocabulary, width)."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Hidden states (B, T, D) of int64 tokens (B, T); with a cache, of the tokens that follow the cached ones.

        The cache is extended in place.
        """
        x_BTD = self.embedding(tokens_BT)
        tokens, device = tokens_BT.shape[1], x_BTD.device
        rope_TE = self.angles(tokens, device) if cache is None else cache.begin(tokens, self.angles, device)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rope_TE, cache, index)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x_BTD)

    def angles(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin (T, E/2) of the rotary angles at the positions 0 … T − 1."""
        return rotary_angles(tokens, self.head_width, self.rope_base, device, self.rope_scaling)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, own: LossCallable | None = None) -> Tensor:
        """Mean next-token loss, in nats, of int64 tokens and the tokens that follow them, both (B, T).

        Another loss takes its place with `own`, called as (hidden_BTD, head_VD, targets_BT, tokens_BT).
        """
        # Not self(…): under FSDP this method gathers the weights as forward does, and they must not be gathered twice.
        hidden_BTD = self.forward(tokens_BT)
        if own is not None:
            return own(hidden_BTD, self.head_VD, targets_BT, tokens_BT)
        return next_token_loss(hidden_BTD, self.head_VD, targets_BT)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits (B, T, V) of hidden states."""
        return F.linear(hidden_BTD, self.head_VD)

    def flops_per_token(self, tokens: int) -> int:
        """Forward FLOPs of one token in a sequence of `tokens`, a multiply-add counted as two.

        Projections, output head, and 4·T·D a block for attention's two products; as usual (arXiv 2204.02311,
        appendix B) the causal mask is not discounted and element-wise work not counted.
        """
        inside = sum(one.flops_per_token for one in projections(self).values())
        return inside + 2 * self.head_VD.numel() + 4 * tokens * self.width * len(self.blocks)

    def dense_equivalent(self) -> int:
        """Parameters of the same decoder with every projection dense."""
        total = sum(p.numel() for p in self.parameters())
        for one in projections(self).values():
            total += one.in_features * one.out_features - sum(p.numel() for p in one.parameters())
        return total


def check_flops(decoder: Decoder, tokens: int = 8) -> None:
    """Counts a subclass's matrix products; it is to be on the meta device.

    Raises:
        ValueError: they are more than its `flops_per_token` says.
    """
    if type(decoder) is Decoder:
        return
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decoder.logits(decoder(ids))
    counted, stated = counter.get_total_flops() // tokens, decoder.flops_per_token(tokens)
    if counted > 1.01 * stated:
        raise ValueError(
            f"{type(decoder).__name__} computes {counted:,} FLOPs a token, and its flops_per_token({tokens}) says "
            f"{stated:,}: override it"
        )


class Block(nn.Module):
    """Attention and SwiGLU, each after an RMSNorm and added to the residual stream.

    With `recompute` on, training keeps a block's input alone and computes the rest again in the backward pass.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        ffn_width: int,
        attention: LinearCallable,
        mlp: LinearCallable,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads, attention)
        self.mlp_norm = nn.RMSNorm(width, eps=norm_eps)
        self.mlp = SwiGLU(width, ffn_width, mlp)
        self.recompute = False

    def forward(self, x_BTD: Tensor, rope_TE: tuple[Tensor, Tensor], cache: KVCache | None, index: int) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Nothing in a block is random.
            return checkpoint(self._add, x_BTD, rope_TE, cache, index, use_reentrant=False, preserve_rng_state=False)
        return self._add(x_BTD, rope_TE, cache, index)

    def _add(self, x_BTD: Tensor, rope_TE: tuple[Tensor, Tensor], cache: KVCache | None, index: int) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rope_TE, cache, index)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Attention(nn.Module):
    """Causal softmax attention with rotary positions and optional grouped-query heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, linear: LinearCallable) -> None:
        super().__init__()
        self.head_width = width // heads
        self.query = linear(width, width)
        self.key = linear(width, kv_heads * self.head_width)
        self.value = linear(width, kv_heads * self.head_width)
        self.output = linear(width, width)

    def forward(self, x_BTD: Tensor, rope_TE: tuple[Tensor, Tensor], cache: KVCache | None, index: int) -> Tensor:
        q_BHTE = rotate(self._heads(self.query(x_BTD)), rope_TE)
        k_BKTE = rotate(self._heads(self.key(x_BTD)), rope_TE)
        v_BKTE = self._heads(self.value(x_BTD))
        if cache is None:
            grouped = q_BHTE.shape[1] != k_BKTE.shape[1]
            y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=grouped)
        else:
            y_BHTE = cache.attend(index, q_BHTE, k_BKTE, v_BKTE)
        return self.output(y_BHTE.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) ⊙ up(x))."""

    def __init__(self, width: int, ffn_width: int, linear: LinearCallable) -> None:
        super().__init__()
        self.gate = linear(width, ffn_width)
        self.up = linear(width, ffn_width)
        self.down = linear(ffn_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
