"""Optimizer steps inside the backward pass, so that all gradients never exist at once."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def step_in_backward(optimizers: Iterable[Optimizer]) -> list[RemovableHandle]:
    """Steps each optimizer inside `backward()`, as soon as all its parameters have their gradients, and frees these.

    With one optimizer a block of the model, the gradients of one block exist at a time, and its parameters are updated
    while they are still in the processor's cache. The updates are those of a step after the backward pass:

        step_in_backward([AdamW(block.parameters(), fused=True) for block in blocks])
        loss.backward()     # the whole training step

    A constraint goes into its optimizer's step hooks: `optimizer.register_step_post_hook(lambda *_: x.after_step())`.

    Excluded is what needs all gradients together or more than one backward pass a step: clipping by the global norm,
    accumulation, a gradient scaler, skipping a step whose gradients are not finite, and data-parallel wrappers, which
    average gradients after these hooks. Every trainable parameter must take part in every loss.

    Returns:
        The hooks; `remove()` each to step by hand again.

    Raises:
        ValueError: a parameter in two optimizers.
        RuntimeError: in `backward()`, when a parameter had no gradient in the pass before.
    """
    owned: set[Tensor] = set()
    handles = []
    for optimizer in optimizers:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if not owned.isdisjoint(trained):
            raise ValueError("step_in_backward: a parameter belongs to two of the optimizers")
        owned.update(trained)
        arrived = _step_when_complete(optimizer, trained)
        handles += [p.register_post_accumulate_grad_hook(arrived) for p in trained]
    return handles


def _step_when_complete(optimizer: Optimizer, parameters: list[Tensor]) -> Callable[[Tensor], None]:
    """The hook of these parameters: the last one to get its gradient steps the optimizer."""
    missing = set(parameters)

    def arrived(parameter: Tensor) -> None:
        if parameter not in missing:
            shapes = [tuple(p.shape) for p in parameters if p in missing]
            raise RuntimeError(
                f"step_in_backward: parameters of shapes {shapes} had no gradient in the last backward pass, so the "
                "others of their optimizer were not updated: leave them out of the optimizer"
            )
        missing.remove(parameter)
        if not missing:
            optimizer.step()
            optimizer.zero_grad()
            missing.update(parameters)

    return arrived
