"""What a training step keeps and needs beside weights, gradients and optimizer state, from the model's own code.

One block, and the decoder without its blocks, are run forward and backward on fake tensors: shapes and dtypes without
data. So no formula has to follow what autograd saves, and a new parameterization is measured as it is.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lrtrain.nn import Decoder, LossCallable
from lrtrain.nn.decoder import Block, rotary_angles
from lrtrain.nn.loss import CHUNK_LOGITS
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.live_bytes import LiveBytes


@dataclass(frozen=True)
class Affine:
    """`constant` + `each` · sequences, in bytes."""

    constant: float
    each: float

    def __call__(self, sequences: float) -> float:
        return self.constant + self.each * sequences


@dataclass(frozen=True)
class BlockBytes:
    """Bytes of one block by the sequences of a micro-batch.

    Attributes:
        kept: Alive after its forward pass: what backward needs, and its output. The input belongs to the block before.
        forward: The same until the forward pass of the whole model has ended: autocast holds its copies of weights.
        backward: The most in its backward pass, beside its input: what it kept, gradients, and copies.
    """

    kept: Affine
    forward: Affine
    backward: Affine


@dataclass(frozen=True)
class EndBytes:
    """Bytes of embedding, last norm, head and loss by the tokens of a micro-batch, the embedding's output among them.

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


class Activations:
    """Runs a decoder's parts on fake tensors, each size once.

    Args:
        decoder: On the meta device.
        tokens: Of one sequence.
        weights: dtype of the parameters.
        compute: Autocast's dtype; None without autocast.
        loss: What training minimizes; None is the next-token loss.

    `stay` says that gradients are there already: those of an earlier micro-batch, or buffers that always are.

    Raises:
        UserError: blocks that are not alike or not `nn.decoder.Block`s, or a loss that needs data.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokens: int,
        weights: torch.dtype,
        compute: torch.dtype | None,
        loss: LossCallable | None = None,
    ) -> None:
        self.decoder, self.tokens, self.weights, self.compute, self.loss = decoder, tokens, weights, compute, loss
        shapes = [{name: p.shape for name, p in block.named_parameters()} for block in decoder.blocks]
        if any(found != shapes[0] for found in shapes) or not isinstance(decoder.blocks[0], Block):
            raise UserError(
                f"model.decoder: {type(decoder).__name__} has blocks that differ or are no lrtrain.nn.decoder.Block: "
                "lrtrain plan measures the memory of one such block for all"
            )
        self._blocks: dict[tuple[bool, bool], BlockBytes] = {}
        self._ends: dict[tuple[int, bool], EndBytes] = {}

    def block(self, recompute: bool, stay: bool) -> BlockBytes:
        """A block's bytes, with its inner activations computed again in the backward pass or not."""
        if (recompute, stay) not in self._blocks:
            one, two = (self._run_block(sequences, recompute, stay) for sequences in (1, 2))
            parts = (Affine(2 * a - b, b - a) for a, b in zip(one, two, strict=True))
            self._blocks[recompute, stay] = BlockBytes(*parts)
        return self._blocks[recompute, stay]

    def ends(self, tokens: int, stay: bool) -> EndBytes:
        """The bytes of embedding, last norm, head and loss for a micro-batch of some tokens."""
        chunk = max(1, CHUNK_LOGITS // self.decoder.head_VD.shape[0])
        if tokens > 4 * chunk:
            # From the third chunk on nothing but the hidden states and their gradients grows.
            three, four = (vars(self.ends(times * chunk, stay)).values() for times in (3, 4))
            return EndBytes(*(a + (b - a) * (tokens / chunk - 3) for a, b in zip(three, four, strict=True)))
        if (tokens, stay) not in self._ends:
            self._ends[tokens, stay] = EndBytes(*self._run_ends(tokens, stay))
        return self._ends[tokens, stay]

    def _run_block(self, sequences: int, recompute: bool, stay: bool) -> tuple[int, int, int]:
        module = copy.deepcopy(self.decoder.blocks[0])
        assert isinstance(module, Block)
        module.recompute = recompute
        with FakeTensorMode() as fake, fake:
            self._materialize(module, stay)
            x_BTD = torch.empty(sequences, self.tokens, self.decoder.width, dtype=self.weights, requires_grad=True)
            rope_TE = rotary_angles(0, self.tokens, self.decoder.head_width, self.decoder.rope_base, x_BTD.device)
            with LiveBytes() as live:
                with self._autocast():
                    y_BTD = module(x_BTD, rope_TE, None, 0)
                    forward = live.now
                kept = live.now
                live.restart()
                y_BTD.backward(torch.empty_like(y_BTD))
                # In a model the output is gone by then: the next block's backward pass was the last to need it.
                return kept, forward, live.peak - y_BTD.untyped_storage().nbytes()

    def _run_ends(self, tokens: int, stay: bool) -> tuple[int, int, int, int]:
        blocks = self.decoder.blocks
        try:
            self.decoder.blocks = nn.ModuleList()
            decoder = copy.deepcopy(self.decoder)
        finally:
            self.decoder.blocks = blocks
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
                return kept, forward, peaks[0], live.peak

    def _materialize(self, module: nn.Module, stay: bool) -> None:
        """Puts fake parameters in the place of those on the meta device, tied ones once."""
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

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast("cpu", dtype=self.compute, enabled=self.compute is not None):
            yield


@contextmanager
def loss_errors() -> Iterator[None]:
    """Turns what a loss raises without data into a UserError."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"model.loss: it cannot be measured without data: {type(error).__name__}: {text}") from error
