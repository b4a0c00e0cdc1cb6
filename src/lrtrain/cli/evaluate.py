"""`lrtrain evaluate`: tasks of lm-eval's harness on a checkpoint or on an exported folder."""

import argparse
import math
import sys
from pathlib import Path

from lrtrain.cli.arguments import Arguments, announce, positive
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.stores import is_remote


def main(argv: list[str]) -> int:
    """Prints the table, writes the JSON, and records the figures in the checkpoint's run.

    Raises:
        UserError: a task is unknown or has no data here, the model cannot be read, or lm-eval is not installed.
    """
    options = _arguments().parse_args(argv)
    names = [name for part in options.tasks for name in part.split(",") if name]
    path, remote = Path(options.model), is_remote(options.model)
    if options.out is not None and (options.out.is_dir() or not options.out.absolute().parent.is_dir()):
        raise UserError(f"--out {options.out}: name a file in a folder that is there")

    from lrtrain.studies.evaluation.harness_tasks import check_harness, check_names, load_tasks, own_sources

    check_harness()
    announce(f"evaluate: starting with {', '.join(names)}; the harness's list of tasks takes seconds …")

    from lrtrain.checkpoint.remote_runs import cached
    from lrtrain.config.trained_model import newest_checkpoint
    from lrtrain.studies.evaluation.evaluated_model import exported_model, trained_model
    from lrtrain.studies.evaluation.exported_lm import check_folder, is_exported
    from lrtrain.studies.evaluation.harness_run import run_harness
    from lrtrain.studies.evaluation.kept_results import keep

    manager = check_names(names, options.include_path)
    exported = not remote and is_exported(path)
    if exported:
        check_folder(path, options.trust_remote_code)
    else:
        path = cached(options.model) if remote else newest_checkpoint(path)
    print(f"{'model':<12} {path}", flush=True)
    tasks = load_tasks(names, manager)  # before the model: a task without data is the likelier mistake
    for line in own_sources(tasks):
        print(f"{'task':<12} {line}", flush=True)
    settings = (path, options.batch_size, options.context, options.device)
    model = exported_model(*settings, options.trust_remote_code) if exported else trained_model(*settings, not remote)
    found = run_harness(model.lm, tasks, options.num_fewshot, options.limit, options.context, bars=sys.stderr.isatty())
    print(f"\n{found.as_table()}\n")
    lines, warnings = keep(found, model, options.out, options.record, {"tasks": names, "arguments": argv})
    for name, line in lines:
        print(f"{name:<12} {line}")
    for warning in [*found.notes, *warnings]:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _arguments() -> Arguments:
    parser = Arguments(
        prog="lrtrain evaluate",
        description="Asks tasks of lm-eval's harness of a checkpoint, without an export, or of a folder for "
        "transformers (lrtrain export). The figures go to the terminal, to JSON, and into the record of the "
        "checkpoint's run and its MLflow, at the checkpoint's step.",
        epilog="Needs lm-eval: pip install 'lrtrain[eval]'. Offline, and with files of your own: docs/evaluation.md.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default="runs",
        help="a .ckpt, a run directory, or a folder of runs (its newest), the URL of one of these in a store, or a "
        "folder with config.json (default runs)",
    )
    parser.add_argument(
        "--tasks",
        action="append",
        required=True,
        metavar="NAME,…",
        help="the harness's names of tasks, groups or tags, patterns of them, or YAML files of tasks",
    )
    parser.add_argument(
        "--include-path",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="a folder of further tasks in the harness's YAML; may be given several times",
    )
    parser.add_argument(
        "--num-fewshot", type=_count, metavar="K", help="solved examples before a question (default: the task's own)"
    )
    parser.add_argument(
        "--limit", type=_limit, metavar="N", help="documents of each task, or a share of them below 1 (default: all)"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="B", help="sequences at once (default 16)")
    parser.add_argument(
        "--context", type=positive, metavar="TOKENS", help="longest sequence (default: data.block_size of the run)"
    )
    parser.add_argument("--device", help="as torch names it (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write (default: in the run directory)")
    parser.add_argument("--no-record", dest="record", action="store_false", help="leave the run as it is")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that lies in the folder, as a factorized export has it: with your rights, so read it first",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 0, got {text}")
    return int(text)


def _limit(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf or (number >= 1 and number != int(number)):
        raise argparse.ArgumentTypeError(f"expected a whole number of documents or a share below 1, got {text}")
    return number
