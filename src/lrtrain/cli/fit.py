"""`lrtrain fit`, `validate` and `test`: a configuration, trained or evaluated in its run directory."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from lrtrain.cli.arguments import announce
from lrtrain.cli.fit_help import asked, page
from lrtrain.cli.next_steps import after_a_signal, after_the_end
from lrtrain.config.settings import config_files, with_files
from lrtrain.runtime.allocator import keep_freed_memory
from lrtrain.runtime.errors import UserError

if TYPE_CHECKING:
    from lrtrain.config.train_parser import TrainingRun

PRINT_MODEL = "--print-model"


def fit(argv: list[str]) -> int:
    """Trains, or resumes with `--ckpt_path last`, and ends with a summary; `--print-model` prints a table alone."""
    if PRINT_MODEL in argv:
        return _print_model([argument for argument in argv if argument != PRINT_MODEL])
    argv = _begin("fit", argv)
    from lrtrain.checkpoint.directory import FOLDER, steps_in
    from lrtrain.checkpoint.leaving import leave_together
    from lrtrain.checkpoint.signals import Told
    from lrtrain.config.export_at_end import export_is_possible, export_last
    from lrtrain.config.run_directory import discard_if_empty
    from lrtrain.config.train_parser import TrainingRun
    from lrtrain.studies.report.run_report import write_report
    from lrtrain.training.summary import print_summary

    keep_freed_memory()
    try:
        run = TrainingRun("fit", argv)
        run.record.report = partial(write_report, ended=True)
        if run.trainer.is_global_zero:
            print(f"run {run.run_dir}" + (f": resuming from {run.resumed}" if run.resumed is not None else ""))
        export_is_possible(run)
        try:
            with _one_line_for_a_lost_process(run):
                _train(run)
                if run.resumed is not None and not run.record.written:
                    _close(run)
        except BaseException:
            _finish_copy_of_what_ended(run)
            raise
    except Told as told:
        if run.trainer.is_global_zero:
            newest = next(iter(steps_in(run.run_dir / FOLDER).values()), None)
            print(after_a_signal(told.signal, run.run_dir, newest), file=sys.stderr, flush=True)
        leave_together(told.signal)
        raise
    finally:
        discard_if_empty()  # a run that was refused leaves nothing that looks like one
    with _one_line_for_a_lost_process(run):
        print_summary(run.trainer, run.model)
    run.finish_copy()
    export_last(run)
    if run.trainer.is_global_zero and run.record.written and not run.trainer.fast_dev_run:  # type: ignore[attr-defined]
        print("\nnext")
        for purpose, command in after_the_end(run.run_dir, run.config.name, run.trainer.global_step):
            print(f"  {purpose:<13} {command}")
    return 0


def _print_model(argv: list[str]) -> int:
    announce(f"fit: the model of {' + '.join(config_files(with_files(argv))) or 'no --config'}; importing torch …")
    from lrtrain.studies.plan.layer_table import print_model

    print_model(argv)
    return 0


def validate(argv: list[str]) -> int:
    """Prints loss, perplexity and bits per byte on the held-out split, of a recipe's run or of a checkpoint."""
    return _evaluate("validate", argv)


def test(argv: list[str]) -> int:
    """The same on the test split, which is the held-out split unless the data brings another."""
    return _evaluate("test", argv)


def _evaluate(command: str, argv: list[str]) -> int:
    checkpoint, argv = (argv[:1], argv[1:]) if argv and not argv[0].startswith("-") else ([], argv)
    argv = _begin(command, argv)
    from lrtrain.config.evaluated_run import of_checkpoint
    from lrtrain.config.train_parser import TrainingRun

    for named in checkpoint:
        argv = of_checkpoint(named, argv)
    run = TrainingRun(command, argv)
    if run.trainer.is_global_zero:
        print(f"checkpoint {run.resumed}", flush=True)
    evaluate = getattr(run.trainer, command)
    with _one_line_for_a_lost_process(run):
        results = evaluate(
            run.model, datamodule=run.datamodule, ckpt_path=run.resumed, weights_only=True, verbose=False
        )
    if run.trainer.is_global_zero:
        for name, value in {name: value for found in results for name, value in found.items()}.items():
            print(f"{name:<20} {value:.4f}")
    return 0


def _train(run: "TrainingRun") -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        run.trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=run.resumed, weights_only=True)
    except (MisconfigurationException, ValueError) as error:
        if run.record.written:
            raise
        # Before the first batch it is about settings: two that exclude each other, or not those of the checkpoint.
        text = " ".join(str(error).split())
        if run.resumed is None:
            raise UserError(f"configuration: {text}") from error
        raise UserError(f"cannot resume from {run.resumed}: {text}; compare with the config.yaml of its run") from error


def _finish_copy_of_what_ended(run: "TrainingRun") -> None:
    """Brings to the store what a run has that a signal or an error ended; that stays what it ends with."""
    try:
        run.finish_copy()
    except UserError as error:
        print(f"lrtrain: {error}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _one_line_for_a_lost_process(run: "TrainingRun") -> Iterator[None]:
    """Makes what torch says of a host that is gone one line, told once, that says where to go on."""
    from lrtrain.checkpoint.directory import FOLDER, steps_in
    from lrtrain.runtime.lost_processes import LostProcessError, is_lost, who_is_lost

    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        lost = who_is_lost(error, run.roll_call.since())
        newest = next(iter(steps_in(run.run_dir / FOLDER).values()), None)
        advice = f"restart with --ckpt_path last, from {newest}" if newest else "no checkpoint yet: start again"
        raise LostProcessError(f"{lost}; {advice}") from error


def _close(run: "TrainingRun") -> None:
    """Does what was still due when the process of a run went after its last step; says so, or that nothing is."""
    from lrtrain.tracking.logger import MLflowLogger
    from lrtrain.tracking.recorded import recorded

    trainer = run.trainer
    due = False
    own = run.resumed is not None and run.run_dir.resolve() in run.resumed.resolve().parents
    if own and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        record = recorded(run.run_dir)
        due = record is None or record.status != "FINISHED"
    due = trainer.strategy.broadcast(due)
    if trainer.is_global_zero:
        line = f"step {trainer.global_step} is the last one already: "
        print(line + ("closing the run, which was still due" if due else "raise trainer.max_steps to go on"))
    if due:
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.log_provenance()  # opens the record, which the end of the validation closes as finished
        trainer.validate(run.model, datamodule=run.datamodule, verbose=False)


def _begin(command: str, argv: list[str]) -> list[str]:
    """Explains what is asked for and ends, or says what begins; returns the arguments, shipped files by their paths."""
    topic, argv = asked(argv)
    if topic == "":
        print(page(command), flush=True)
        raise SystemExit(0)
    argv = with_files(argv)
    announce(f"{command}: {' + '.join(config_files(argv)) or 'no --config'}; importing torch and lightning …")
    hush()
    if topic is not None:
        from lrtrain.config.described import describe

        print(describe(command, argv, topic), flush=True)
        raise SystemExit(0)
    return argv


def hush() -> None:
    """Leaves out warnings of libraries that say nothing that a user could act on."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*IterableDataset. has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available on your system but is not used.*")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # Apple GPUs have no QR
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store on a lost host is told with a stack of addresses
