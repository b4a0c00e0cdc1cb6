"""`lrtrain fit`, `validate` and `test`: Lightning's command line over one run directory."""

import logging
import os
import warnings
from typing import Any

from lrtrain.runtime.allocator import keep_freed_memory
from lrtrain.runtime.errors import UserError


def fit(argv: list[str]) -> int:
    """Trains, or resumes with `--ckpt_path last`, and ends with a summary."""
    from lrtrain.config.run_directory import discard_if_empty
    from lrtrain.training.summary import print_summary

    keep_freed_memory()
    try:
        cli = _cli("fit", argv)
        if cli.trainer.is_global_zero:
            print(f"run {cli.run_dir}" + (f": resuming from {cli.resumed}" if cli.resumed is not None else ""))
        _train(cli)
        if cli.resumed is not None and not cli.record.written:
            print(f"step {cli.trainer.global_step} is the last one already: raise trainer.max_steps to go on")
    finally:
        discard_if_empty()  # a run that was refused leaves nothing that looks like one
    print_summary(cli.trainer, cli.model)
    return 0


def validate(argv: list[str]) -> int:
    """Prints loss, perplexity and bits per byte on the held-out split."""
    return _evaluate("validate", argv)


def test(argv: list[str]) -> int:
    """The same on the test split, which is the held-out split unless the data brings another."""
    return _evaluate("test", argv)


def _evaluate(command: str, argv: list[str]) -> int:
    cli = _cli(command, argv)
    run = getattr(cli.trainer, command)
    results = run(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resumed, weights_only=True, verbose=False)
    if cli.trainer.is_global_zero:
        print(f"checkpoint {cli.resumed}")
        for name, value in results[0].items():
            print(f"{name:<20} {value:.4f}")
    return 0


def _train(cli: Any) -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resumed, weights_only=True)
    except (MisconfigurationException, ValueError) as error:
        if cli.record.written:
            raise
        # Before the first batch it is about settings: two that exclude each other, or not those of the checkpoint.
        text = " ".join(str(error).split())
        if cli.resumed is None:
            raise UserError(f"configuration: {text}") from error
        raise UserError(f"cannot resume from {cli.resumed}: {text}; compare with the config.yaml of its run") from error


def _cli(command: str, argv: list[str]) -> Any:
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # Apple GPUs have no QR
    # Says nothing that a user could act on.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*IterableDataset. has `__len__` defined.*")
    from lrtrain.config.train_parser import TrainCLI

    # Only after the import: Lightning sets its own levels.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return TrainCLI(command, argv)
