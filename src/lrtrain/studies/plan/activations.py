"""Measures what a training step keeps in memory beyond weights, gradients and optimizer state.

One block of each kind, and the decoder without blocks, run forward and backward on fake tensors (shape and dtype, no
data), so no formula has to follow what autograd saves.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lrtrain.nn import Decoder, LossCallable
from lrtrain.nn.decoder import Block
from lrtrain.nn.loss import CHUNK_LOGITS
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.live_bytes import LiveBytes


class BlockBytes(NamedTuple):
    """Bytes of one block.

    Attributes:
        kept: Alive after its forward pass: what backward needs, and its output. The input belongs to the block before.
        forward: The same plus autocast's copies of the weights, held until the model's forward pass has ended.
        backward: Peak during its backward pass, without its input: what it kept, gradients, and copies.
    """

    kept: float
    forward: float
    backward: float


class EndBytes(NamedTuple):
    """Bytes of embedding, final norm, head and loss, and of the embedding's output, for a micro-batch of some tokens.

    Attributes:
        kept: Alive between forward and backward pass.
        forward: The most in the forward pass: a chunk of logits, with the gradients that the loss makes at once.
        top: The most in the backward pass before the last block's.
        bottom: The most in it after the first block's, with the gradients of head and norm.
    """

    kept: float
    forward: float
    top: float
    bottom: float


@dataclass
class Activations:
    """Runs a decoder's parts on fake tensors, each size once.

    Args:
        decoder: On the meta device.
        tokens: Tokens in one sequence.
        weights: dtype of the parameters.
        compute: Autocast's dtype; None without autocast.
        loss: What training minimizes; None is the next-token loss.

    `stay`: gradients already exist (from an earlier micro-batch, or as permanent buffers).

    Attributes:
        kinds: Of each block the first that is like it, by its number.

    Raises:
        UserError: blocks that are not `nn.decoder.Block`s, or a loss that needs data.
    """

    decoder: Decoder
    tokens: int
    weights: torch.dtype
    compute: torch.dtype | None
    loss: LossCallable | None = None
    kinds: list[int] = field(default_factory=list, init=False)
    _blocks: dict[tuple[int, bool, bool], tuple[BlockBytes, BlockBytes]] = field(default_factory=dict, init=False)
    _ends: dict[tuple[int, bool], EndBytes] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        blocks = list(self.decoder.blocks)
        if not all(isinstance(block, Block) for block in blocks):
            raise UserError(
                f"model.decoder: {type(self.decoder).__name__} has blocks that are no lrtrain.nn.decoder.Block, whose "
                "memory lrtrain plan measures"
            )
        looks = [_look(block) for block in blocks]
        self.kinds = [looks.index(look) for look in looks]

    def block(self, kind: int, recompute: bool, stay: bool) -> tuple[BlockBytes, BlockBytes]:
        """Returns a block's constant bytes and those of each sequence of a micro-batch.

        With `recompute` its inner activations are recomputed in the backward pass.
        """
        if (kind, recompute, stay) not in self._blocks:
            one, two = (self._run_block(kind, sequences, recompute, stay) for sequences in (1, 2))
            each = BlockBytes(*(b - a for a, b in zip(one, two, strict=True)))
            constant = BlockBytes(*(a - b for a, b in zip(one, each, strict=True)))
            self._blocks[kind, recompute, stay] = constant, each
        return self._blocks[kind, recompute, stay]

    def ends(self, tokens: int, stay: bool) -> EndBytes:
        """The bytes of embedding, last norm, head and loss for a micro-batch of some tokens."""
        chunk = max(1, CHUNK_LOGITS // self.decoder.head_VD.shape[0])
        if tokens > 4 * chunk:
            # From the third chunk on nothing but the hidden states and their gradients grows.
            three, four = (self.ends(times * chunk, stay) for times in (3, 4))
            return EndBytes(*(a + (b - a) * (tokens / chunk - 3) for a, b in zip(three, four, strict=True)))
        if (tokens, stay) not in self._ends:
            self._ends[tokens, stay] = self._run_ends(tokens, stay)
        return self._ends[tokens, stay]

    def _run_block(self, kind: int, sequences: int, recompute: bool, stay: bool) -> BlockBytes:
        module = copy.deepcopy(self.decoder.blocks[kind])
        assert isinstance(module, Block)
        module.recompute = recompute
        with FakeTensorMode() as fake, fake:
            self._materialize(module, stay)
            x_BTD = torch.empty(sequences, self.tokens, self.decoder.width, dtype=self.weights, requires_grad=True)
            rope_TE = self.decoder.angles(self.tokens, x_BTD.device)
            with LiveBytes() as live:
                with self._autocast():
                    y_BTD = module(x_BTD, rope_TE, None, 0)
                    forward = live.now
                kept = live.now
                live.restart()
                y_BTD.backward(torch.empty_like(y_BTD))
                # In a model the output is gone by then: the next block's backward pass was the last to need it.
                return BlockBytes(kept, forward, live.peak - y_BTD.untyped_storage().nbytes())

    def _run_ends(self, tokens: int, stay: bool) -> EndBytes:
        decoder = copy.deepcopy(self.decoder, {id(self.decoder.blocks): nn.ModuleList()})
        peaks: list[int] = []
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, fake:  # a loss may hold weights
            self._materialize(decoder, stay)
            with LiveBytes() as live:

                def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                    output.register_hook(lambda gradient: peaks.append(live.restart()))

                decoder.embedding.register_forward_hook(watch)
                batch = torch.zeros(1, tokens + 1, dtype=torch.int64)
                with self._autocast(), loss_errors():
                    loss = decoder.loss(batch[:, :-1], batch[:, 1:], self.loss)
                kept, forward = live.now, live.restart()
                loss.backward()
                return EndBytes(kept, forward, peaks[0], live.peak)

    def _materialize(self, module: nn.Module, stay: bool) -> None:
        """Replaces meta parameters with fake ones; tied parameters become one."""
        made: dict[Tensor, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
                if parameter not in made:
                    made[parameter] = nn.Parameter(
                        torch.empty(parameter.shape, dtype=self.weights), requires_grad=parameter.requires_grad
                    )
                    if stay:
                        made[parameter].grad = torch.empty_like(made[parameter])
                setattr(part, name, made[parameter])
            for name, buffer in list(part.named_buffers(recurse=False, remove_duplicate=False)):
                setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=self.compute, enabled=self.compute is not None)


def _look(block: nn.Module) -> list[Any]:
    """What two blocks that take the same memory have in common: classes and shapes."""
    return [
        (name, type(module), [(of, p.shape) for of, p in module.named_parameters(recurse=False)])
        for name, module in block.named_modules()
    ]


@contextmanager
def loss_errors() -> Iterator[None]:
    """Turns what a loss raises without data into a UserError."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"model.loss: it cannot be measured without data: {type(error).__name__}: {text}") from error
