"""Keys and values of the tokens that a decoder has seen, in room that is allocated once.

Shape suffixes as in `decoder.py`: B rows, T new tokens, S with those before them, K key-value heads, E width of a head.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

Angles = Callable[[int, torch.device], tuple[Tensor, Tensor]]


class KVCache:
    """What attention keeps between calls of `Decoder.forward(tokens, cache)`; nothing of it is copied for a new token.

    Row b holds `lengths[b]` tokens, and new ones are written behind them, so that rows may differ in length. What lies
    behind a row's length is never attended to: lowering `lengths` takes tokens back.

    A decoder of one's own that passes `cache` on to `Decoder.forward` or to its blocks needs nothing else; one that
    calls `Attention` itself calls `begin` before its blocks and `advance` after them.

    On a CPU, which attends to float32 several times faster than to narrower dtypes, it is of float32 at least.

    Args:
        rows: Sequences.
        room: Tokens that each of them can hold.

    Attributes:
        lengths: Tokens of each row.
    """

    def __init__(self, rows: int, room: int) -> None:
        self.lengths = [0] * rows
        self.room = room
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._angles: tuple[Tensor, Tensor] | None = None
        self._places: Tensor | None = None
        self._mask: Tensor | None = None

    def begin(self, tokens: int, angles: Angles, device: torch.device) -> tuple[Tensor, Tensor]:
        """Prepares for T new tokens a row; cos and sin of their positions, (T, E/2) or (B, 1, T, E/2).

        `angles` gives those of the positions before a number of tokens, as `Decoder.angles` does.

        Raises:
            ValueError: there is no room for them.
        """
        longest = max(self.lengths) + tokens
        if longest > self.room:
            raise ValueError(f"the cache has room for {self.room} tokens a row, and this makes {longest}")
        if self._angles is None:
            self._angles = angles(self.room, device)
        cos, sin = self._angles
        start = self.lengths[0]
        if all(length == start for length in self.lengths):
            self._places = None
            steps = torch.arange(longest, device=device)
            self._mask = None if tokens == 1 or start == 0 else steps <= steps[start:, None]
            return cos[start:longest], sin[start:longest]
        starts = torch.tensor(self.lengths, device=device)
        places_BT = starts[:, None] + torch.arange(tokens, device=device)
        self._places = places_BT
        self._mask = (torch.arange(longest, device=device) <= places_BT[..., None])[:, None]
        return cos[places_BT][:, None], sin[places_BT][:, None]

    def attend(self, index: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        """Keeps the new keys and values of a block, and gives the attention of its queries to all up to their own."""
        tokens, start = q_BHTE.shape[2], self.lengths[0]
        keys, values = self._room_of(index, k_BKTE)
        if self._places is None:
            keys[:, :, start : start + tokens] = k_BKTE
            values[:, :, start : start + tokens] = v_BKTE
        else:
            rows = torch.arange(len(self.lengths), device=keys.device)[:, None]
            keys[rows, :, self._places] = k_BKTE.transpose(1, 2).to(keys.dtype)
            values[rows, :, self._places] = v_BKTE.transpose(1, 2).to(values.dtype)
        heads, kv_heads = q_BHTE.shape[1], k_BKTE.shape[1]
        if self._mask is None and tokens > 1:
            return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=heads != kv_heads)
        longest = max(self.lengths) + tokens
        # Query heads of one key-value head stand side by side as if they were tokens: no key is repeated for them.
        groups = heads // kv_heads
        q_BKtE = q_BHTE.reshape(len(self.lengths), kv_heads, groups * tokens, -1).to(keys.dtype)
        mask = self._mask
        if mask is not None and groups > 1 and tokens > 1:
            mask = mask.repeat(*[1] * (mask.dim() - 2), groups, 1)
        y = F.scaled_dot_product_attention(q_BKtE, keys[:, :, :longest], values[:, :, :longest], attn_mask=mask)
        return y.reshape(q_BHTE.shape).to(q_BHTE.dtype)

    def advance(self, tokens: int) -> None:
        """Counts T new tokens of every row, after the last block has kept them."""
        self.lengths = [length + tokens for length in self.lengths]

    def select(self, rows: Sequence[int], room: int) -> Self:
        """A cache of its own with copies of some rows, each as often as it is named."""
        chosen = type(self)(len(rows), room)
        chosen.lengths = [self.lengths[row] for row in rows]
        filled = max(chosen.lengths)
        for index, (keys, values) in self._kept.items():
            for old, new in zip((keys, values), chosen._room_of(index, keys), strict=True):
                new[:, :, :filled] = old[rows, :, :filled]
        return chosen

    def _room_of(self, index: int, like_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        if index not in self._kept:
            _, heads, _, width = like_BKTE.shape
            shape = len(self.lengths), heads, self.room, width
            narrow = like_BKTE.device.type == "cpu" and like_BKTE.dtype.itemsize < 4
            dtype = torch.float32 if narrow else like_BKTE.dtype
            # Zeros: what is masked is multiplied by 0 all the same, and the memory may hold NaN.
            self._kept[index] = like_BKTE.new_zeros(shape, dtype=dtype), like_BKTE.new_zeros(shape, dtype=dtype)
        return self._kept[index]
