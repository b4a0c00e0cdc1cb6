"""`lrtrain fit`, `validate` and `test`: Lightning's command line over one run directory."""

import logging
import os
import warnings
from typing import Any


def fit(argv: list[str]) -> int:
    """Trains, or resumes with `--ckpt_path last`, and ends with a summary."""
    from lrtrain.commands.summary import print_summary

    cli = _cli("fit", argv)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if cli.resumed is not None:
        print(f"run {cli.run_dir}: resuming from {cli.resumed}")
    else:
        print(f"run {cli.run_dir}")
    trainer.fit(model, datamodule=data, ckpt_path=cli.resumed, weights_only=True)
    print_summary(trainer, model, data, cli.config.runs)
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
    print(f"checkpoint {cli.resumed}")
    for name, value in results[0].items():
        print(f"{name:<20} {value:.4f}")
    return 0


def _cli(command: str, argv: list[str]) -> Any:
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # Says nothing that a user could act on.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*IterableDataset. has `__len__` defined.*")
    from lrtrain.commands.parser import TrainCLI

    # Only after the import: Lightning sets its own levels.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return TrainCLI(command, argv)
