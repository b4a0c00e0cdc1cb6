"""Epochs of an endless stream as numbers of steps and micro-batches."""

from fractions import Fraction

import lightning as L

from lrtrain.runtime.errors import UserError


def count_in_steps(trainer: L.Trainer, epoch: Fraction) -> Fraction:
    """Restates in steps and micro-batches what a Trainer's settings say in epochs, as it will see none end.

    A Trainer would cut the accumulation of gradients short at the end of an epoch, and would set up the loader before
    its state is restored to learn how long an epoch is.

    Args:
        trainer: `max_epochs`, `min_epochs`, `limit_train_batches`, `val_check_interval` and `check_val_every_n_epoch`
            are replaced by `max_steps`, `min_steps` and a `val_check_interval` in micro-batches.
        epoch: Micro-batches of one process in one pass over the data.

    Returns:
        Micro-batches of one process in what the Trainer calls an epoch: fewer under `limit_train_batches`.

    Raises:
        UserError: an epoch has no micro-batch or the run no step, or only some epochs would have validations.
    """
    limit, loop = trainer.overfit_batches or trainer.limit_train_batches, trainer.fit_loop  # type: ignore[attr-defined]
    if limit == 0:
        return epoch
    epoch = min(epoch, Fraction(limit)) if isinstance(limit, int) else epoch * Fraction(limit)
    if epoch < 1:
        key = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"  # type: ignore[attr-defined]
        raise UserError(f"trainer.{key} is {limit}: that is {float(epoch):.2g} micro-batches of an epoch, give more")
    trainer.limit_train_batches = 1.0
    epochs, accumulate = trainer.max_epochs, trainer.accumulate_grad_batches
    if epochs is not None and epochs > 0:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # which is a number of steps
            steps = int(epochs * epoch) // accumulate
            if steps == 0:
                raise UserError(
                    f"trainer.max_epochs is {epochs}: that is {float(epochs * epoch):g} micro-batches, less than one "
                    f"step of {accumulate} (trainer.accumulate_grad_batches)"
                )
            loop.epoch_loop.max_steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
        loop.max_epochs = -1
    if loop.min_epochs:
        least = -(-loop.min_epochs * epoch // accumulate)
        loop.epoch_loop.min_steps = max(least, trainer.min_steps or 0)
        loop.min_epochs = 0
    _validate_by_micro_batches(trainer, epoch)
    return epoch


def _validate_by_micro_batches(trainer: L.Trainer, epoch: Fraction) -> None:
    every = trainer.check_val_every_n_epoch or 1
    interval = getattr(trainer, "val_check_interval", None)  # a Trainer that goes by the clock has none
    if every > 1 and not (isinstance(interval, float) and interval == 1.0):
        raise UserError(
            f"trainer.check_val_every_n_epoch is {every}, with a trainer.val_check_interval: give the latter alone, as "
            "a number of micro-batches, with null for check_val_every_n_epoch"
        )
    if isinstance(interval, float):
        trainer.val_check_interval = max(1, int(interval * every * epoch))
    trainer.check_val_every_n_epoch = None
