"""`lrtrain plan`: parameters, FLOPs, memory and time of a configuration, before anything is allocated."""

import json
import re
from pathlib import Path
from typing import Any

from lrtrain.cli.arguments import Arguments
from lrtrain.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Prints the plan, and writes it as JSON where asked."""
    options, rest = _arguments().parse_known_args(argv)
    if options.sct_memory or options.matrix:
        print(_sct(options, rest))
        return 0
    if options.tokens is not None and options.flops is not None:
        raise UserError("--tokens and --flops both set the budget: give one of them")
    if options.throughput is not None and options.like is not None:
        raise UserError("--throughput and --like both set the speed: give one of them")

    from lrtrain.studies.plan.units import read_amount, read_memory

    amounts = {
        "tokens": "a number of tokens",
        "flops": "a number of FLOPs",
        "throughput": "tokens a second of one device",
    }
    given = {
        name: None if getattr(options, name) is None else read_amount(f"--{name}", getattr(options, name), what)
        for name, what in amounts.items()
    }
    limit = None if options.memory is None else read_memory("--memory", options.memory)

    from lrtrain.config.plan_parser import parse
    from lrtrain.studies.plan.budget import recorded_throughput
    from lrtrain.studies.plan.estimate import make_plan
    from lrtrain.studies.plan.estimate_report import report
    from lrtrain.studies.plan.layouts import STRATEGIES, layouts
    from lrtrain.studies.plan.planned_model import model_of
    from lrtrain.studies.plan.request import read_run

    parser, config = parse(rest)
    run = read_run(config)
    chosen = layouts(options.devices or [run.devices], options.strategies or STRATEGIES, options.shards or run.shards)
    if options.like is not None:
        given["throughput"] = recorded_throughput(config.runs, options.like)
    timed = given["throughput"] is not None
    if timed and run.steps is None and given["tokens"] is None and given["flops"] is None:
        raise UserError("the time needs a budget: give --tokens or --flops, or set trainer.max_steps")
    plan = make_plan(model_of(parser, config), run, chosen, limit, **given)
    print(report(plan))
    if options.json is not None:
        _write(options.json, plan.as_dict())
    return 0


def _arguments() -> Arguments:
    parser = Arguments(
        prog="lrtrain plan",
        description="Tells what a configuration takes, without allocating it; --config and overrides are those of fit.",
        epilog="Any other argument belongs to the configuration: --config FILE, --model.decoder.width 512, …",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--devices", type=int, nargs="+", metavar="N", help="numbers of processes [the configuration's]"
    )
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="of ddp, fsdp, hsdp [all]")
    parser.add_argument(
        "--shards", type=int, help="processes of one copy under hsdp [the configuration's, else up to 8]"
    )
    parser.add_argument("--memory", help="of one device, as 80GB or 80GiB: prints the largest micro-batch that fits")
    parser.add_argument("--throughput", help="tokens a second of one device: prints the time")
    parser.add_argument(
        "--like", metavar="NAME", help="the throughput that the newest run of this name recorded, as one device's"
    )
    parser.add_argument("--tokens", help="budget in tokens, as 2e9 or 2B [trainer.max_steps]")
    parser.add_argument("--flops", help="budget in FLOPs of forward and backward pass")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there, in bytes, FLOPs and seconds")
    parser.add_argument("--sct-memory", action="store_true", help="the SCT paper's memory table alone")
    parser.add_argument("--matrix", metavar="MxN", help="that table's line for one matrix, as 8192x28672")
    parser.add_argument("--rank", type=int, default=32, help="of --matrix [32]")
    return parser


def _sct(options: Any, rest: list[str]) -> str:
    from lrtrain.studies.plan.sct_memory import PUBLISHED, sct_table

    if rest:
        raise UserError(f"{rest[0]}: --sct-memory and --matrix take no configuration; leave it out")
    if not options.matrix:
        return sct_table(PUBLISHED)
    match = re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", options.matrix)
    if match is None:
        raise UserError(f"--matrix {options.matrix}: give rows and columns, as in 8192x28672")
    try:
        return sct_table({"matrix": (int(match[1]), int(match[2]))}, options.rank)
    except ValueError as error:
        raise UserError(f"--rank {options.rank}: {error}") from error


def _write(path: Path, plan: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}; name a file in a folder that can be written") from error
