"""Peak memory of one process in a training step, by kind."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from lrtrain.nn import Decoder
from lrtrain.studies.plan.activations import Activations
from lrtrain.studies.plan.optimizer_step import SlotBytes
from lrtrain.studies.plan.plan_settings import Layout

LARGEST = 1 << 24
"""Sequences of a micro-batch beyond which nothing is looked for."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. The kinds need not be there at once: `peak` is the most at any moment, in `phase`.

    Attributes:
        weights: Parameters, with those that are gathered from other processes, and what a loss of one's own holds.
        gradients: All of them, as the optimizer finds them.
        optimizer: Its state.
        activations: Between forward and backward pass.
        loss: What the chunk of logits being worked on takes, with its gradients.
        step: What the optimizer allocates while it steps.
        peak: The largest sum.
        phase: When that is: `loss`, `backward` or `optimizer`.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    step: float
    peak: float
    phase: str


class MemoryModel:
    """The memory of a training step as its peaks: the loss, the backward pass at either end, the optimizer's step.

    P is what stays (weights, optimizer state, and gradients where these stay), aᵢ what the block i keeps, gᵢ its
    gradients, x the embedding's output, and bᵢ the most that its backward pass takes:

        loss       P + Σ a + ends' forward, with autocast's copies of all blocks' weights
        backward   P + Σ a + ends' top,   P + x + Σ aⱼ (j < i) + bᵢ + Σ gⱼ (j > i) of each i,   P + Σ g + ends' bottom,
                   the middle ones with the gradients of head and last norm
        optimizer  P + gradients + step

    Gradients stay from one micro-batch to the next, and under ddp in its buckets. Sharded (FSDP2), weights, gradients,
    state and step are divided by the shards; embedding, head and last norm are whole from the forward to the end of
    the backward pass, of the blocks two are (the one at work and the next), and a block's gradients are whole twice,
    as computed and in float32 on their way to their owners. The allocator's fragments, the libraries' work space and
    the program itself are not counted.

    `accumulates`: a step has several micro-batches.
    """

    def __init__(
        self, decoder: Decoder, activations: Activations, optimizers: Sequence[SlotBytes], accumulates: bool
    ) -> None:
        inside = set(decoder.blocks.parameters())
        ends = [p for p in decoder.parameters() if p not in inside]
        self.width = decoder.width
        self.item = activations.weights.itemsize
        self.blocks = [self.item * sum(p.numel() for p in block.parameters()) for block in decoder.blocks]
        self.ends = self.item * sum(p.numel() for p in ends)
        compute = (activations.compute or activations.weights).itemsize
        gathered = [
            sum(p.numel() * (compute if p.ndim > 1 else self.item) for p in block.parameters())
            for block in decoder.blocks
        ]
        self.gathered = max((sum(two) for two in pairwise(gathered)), default=2 * gathered[0])
        # Those that are there before the first block's: a tied embedding has its gradient from the head on.
        early = [p for p in ends if decoder.head is None or p is not decoder.embedding.weight]
        self.early = self.item * sum(p.numel() for p in early)
        self.weights = sum(self.blocks) + self.ends
        self.state = sum(slot.state for slot in optimizers)
        self.step = max(slot.step for slot in optimizers)
        self.activations, self.accumulates = activations, accumulates
        held = activations.loss.state_dict().values() if isinstance(activations.loss, nn.Module) else ()
        self.loss = sum(tensor.nbytes for tensor in held)

    def at(self, sequences: int, layout: Layout, recompute: bool) -> Memory:
        """Returns the memory for micro-batches of `sequences`, with or without activation checkpointing."""
        sharded = layout.shards > 1
        share = 1 / layout.shards
        stay = not sharded and (self.accumulates or layout.strategy == "ddp")
        tokens = sequences * self.activations.tokens
        ends = self.activations.ends(tokens, stay)
        embedded = tokens * self.width * self.item
        weights, gradients, state = (part * share for part in (self.weights, self.weights, self.state))
        weights += self.loss + (self.ends + self.gathered if sharded else 0)
        end_gradients = 0.0 if stay else float(self.early)
        always = weights + state + (gradients if stay or self.accumulates else 0)
        kept = forward = 0.0
        left = block_gradients = 0.0 if stay else share * sum(self.blocks)
        largest = 0.0
        for kind, numbers in zip(self.activations.kinds, self.blocks, strict=True):
            constant, each = self.activations.block(kind, recompute, stay)
            own = [a + sequences * b for a, b in zip(constant, each, strict=True)]
            if sharded:  # the gathered matrices take the place of autocast's copies
                own = [own[0] - constant.kept, own[1] - constant.forward, own[2] + numbers - constant.kept]
            left -= 0.0 if stay else share * numbers
            largest = max(largest, kept + own[2] + left)
            kept, forward = kept + own[0], forward + own[1]
        moments = {
            "loss": always + forward + ends.forward,
            "backward": always
            + max(kept + ends.top, embedded + end_gradients + largest, block_gradients + ends.bottom),
            "optimizer": (2 * self.weights + self.state + self.step) * share + self.loss,
        }
        phase = max(moments, key=lambda name: moments[name])
        return Memory(
            weights=weights,
            gradients=gradients,
            optimizer=state,
            activations=kept + ends.kept,
            loss=ends.forward - ends.kept,
            step=self.step * share,
            peak=moments[phase],
            phase=phase,
        )

    def largest(self, limit: float, layout: Layout, recompute: bool) -> int:
        """Returns the largest micro-batch (sequences) whose peak is at most `limit` bytes, 0 if none fits."""
        sizes = range(1, LARGEST + 1)
        return bisect_right(sizes, limit, key=lambda sequences: self.at(sequences, layout, recompute).peak)
