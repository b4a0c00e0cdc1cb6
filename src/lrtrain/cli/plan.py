"""`lrtrain plan`: parameters, FLOPs, memory and time of a configuration, before anything is allocated."""

import json
from functools import partial
from pathlib import Path

from lrtrain.cli.arguments import Arguments
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import writing
from lrtrain.runtime.units import read_amount, read_memory


def main(argv: list[str]) -> int:
    """Prints the plan, and writes it as JSON where asked."""
    options, rest = _arguments().parse_known_args(argv)
    if options.sct_memory:
        from lrtrain.studies.plan.sct_memory import sct_table

        if rest:
            raise UserError(f"{rest[0]}: --sct-memory takes no configuration; leave it out")
        print(sct_table())
        return 0
    if options.tokens is not None and options.flops is not None:
        raise UserError("--tokens and --flops both set the budget: give one of them")
    if options.throughput is not None and options.like is not None:
        raise UserError("--throughput and --like both set the speed: give one of them")

    from lrtrain.studies.plan.estimate import make_plan
    from lrtrain.studies.plan.estimate_report import report

    asked = {key: value for key, value in vars(options).items() if key not in ("json", "sct_memory")}
    plan = make_plan(rest, **asked)
    print(report(plan))
    if options.json is not None:
        with writing(f"--json {options.json}"):
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(plan.as_dict(), indent=2) + "\n", encoding="utf-8")
    return 0


def _arguments() -> Arguments:
    parser = Arguments(
        prog="lrtrain plan",
        description="Tells what a configuration takes, without allocating it; --config and overrides are those of fit.",
        epilog="Any other argument belongs to the configuration: --config FILE, --model.decoder.width 512, …",
        allow_abbrev=False,
    )

    def amount(flag: str, what: str, text: str) -> None:
        parser.add_argument(flag, type=partial(read_amount, flag, what=what), help=text)

    parser.add_argument(
        "--devices",
        type=int,
        nargs="+",
        action="extend",
        metavar="N",
        help="numbers of processes [the configuration's]",
    )
    parser.add_argument(
        "--shards", type=int, help="processes of one copy under hsdp [the configuration's, else up to 8]"
    )
    parser.add_argument(
        "--memory",
        type=partial(read_memory, "--memory"),
        help="of one device, as 80GB or 80GiB: prints the largest micro-batch that fits",
    )
    amount("--throughput", "tokens a second of one device", "tokens a second of one device: prints the time")
    parser.add_argument(
        "--like", metavar="NAME", help="the throughput that the newest run of this name recorded, as one device's"
    )
    amount("--tokens", "a number of tokens", "budget in tokens, as 2e9 or 2B [trainer.max_steps]")
    amount("--flops", "a number of FLOPs", "budget in FLOPs of forward and backward pass")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there, in bytes, FLOPs and seconds")
    parser.add_argument("--sct-memory", action="store_true", help="the SCT paper's memory table alone")
    return parser
