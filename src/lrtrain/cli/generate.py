"""`lrtrain generate`: continues texts with a trained checkpoint."""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lrtrain.cli.arguments import Arguments, announce, positive
from lrtrain.cli.generated import Printed
from lrtrain.cli.prompts import from_command_line, one_prompt, prompts_in
from lrtrain.config.run_names import place_of
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.long_work import LongWork
from lrtrain.runtime.stores import is_remote

if TYPE_CHECKING:
    from lrtrain.config.text_generation import Settings, TextGenerator


def main(argv: list[str]) -> int:
    """Prints prompts and their continuations.

    Raises:
        UserError: a value out of range, a prompt that is no text or too long, no checkpoint of ours.
    """
    arguments = _arguments(argv)
    for stream in (sys.stdin, sys.stdout):  # whatever the locale says
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    given: list[tuple[int | None, str]] = []
    if arguments.prompts is not None:
        given += prompts_in(arguments.prompts)
    elif not arguments.interactive:
        given.append((None, one_prompt(arguments.prompt)))
    if place_of(arguments.checkpoint) is not None or is_remote(arguments.checkpoint):
        announce(f"generate: looking at {arguments.checkpoint} …")

    import torch

    from lrtrain.checkpoint.remote_runs import cached
    from lrtrain.config.text_generation import TextGenerator
    from lrtrain.config.trained_model import newest_checkpoint

    settings = _settings(arguments)
    checkpoint = (
        cached(arguments.checkpoint)
        if is_remote(arguments.checkpoint)
        else newest_checkpoint(Path(arguments.checkpoint))
    )
    announce(f"generate: reading {checkpoint} …")
    generator = TextGenerator(checkpoint, arguments.device, getattr(torch, arguments.dtype), arguments.context)
    if arguments.interactive:
        _converse(generator, settings, arguments.json)
    else:
        _continue(generator, settings, arguments, given)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Arguments(
        prog="lrtrain generate",
        description="Continue texts with a trained checkpoint, and print them as they come.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="runs",
        help="a .ckpt, a run's name or directory, a folder of runs (its newest), or the URL of one of these in a store",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="text to continue; all of standard input when left out")
    source.add_argument(
        "--prompts",
        metavar="FILE",
        help='a file of JSON lines, each {"prompt": "a text"}; other keys make no difference',
    )
    source.add_argument(
        "--interactive", action="store_true", help="continue each line of standard input; the model stays loaded"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=128, metavar="N", help="tokens written at most (default 128)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token (default 0.8)"
    )
    parser.add_argument(
        "--top-k", type=positive, metavar="K", help="draw among the K likeliest tokens (default: all of them)"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, metavar="P", help="share of probability drawn from (default 0.95)"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="least probability, in parts of the likeliest token's"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1 makes tokens less likely that were there before (default 1)",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--samples", type=positive, default=1, metavar="N", help="of each prompt, all at once")
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="prompts of the file at once (default 8)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print an object a line: text, tokens, their log-probabilities (nats, of the model itself), ending",
    )
    parser.add_argument(
        "--context",
        type=positive,
        metavar="TOKENS",
        help="prompt and continuation at most (default: data.block_size of the run, the longest sequence it has seen)",
    )
    parser.add_argument("--device", help="as cpu, cuda or cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed {arguments.seed}: must be in [0, 2^63)")
    arguments.stop = [from_command_line("--stop", text) for text in arguments.stop]
    if "" in arguments.stop:
        raise UserError("--stop: an empty text ends everything; name one")
    return arguments


def _settings(arguments: argparse.Namespace) -> "Settings":
    from lrtrain.config.text_generation import Settings
    from lrtrain.nn import Sampling

    rules = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    try:
        sampling = Sampling(**{rule: getattr(arguments, rule) for rule in rules})
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise UserError(f"--{name.replace('_', '-')} {rest}") from error
    return Settings(arguments.max_new_tokens, sampling, arguments.samples, arguments.seed, arguments.stop)


def _continue(
    generator: "TextGenerator", settings: "Settings", arguments: argparse.Namespace, given: list[tuple[int | None, str]]
) -> None:
    """Continues what was given, so many prompts at once as `--batch-size` says."""
    where = "--prompt" if arguments.prompt is not None else "standard input"
    prompts = [
        generator.prompt(text, place, where if line is None else f"{arguments.prompts} line {line}")
        for place, (line, text) in enumerate(given)
    ]
    # On a terminal the texts themselves tell how far it is.
    shown = len(prompts) > arguments.batch_size and not sys.stdout.isatty()
    with LongWork("generate", len(prompts), "prompts", shown) as work:
        for start in range(0, len(prompts), arguments.batch_size):
            batch = slice(start, start + arguments.batch_size)
            printed = Printed(given[batch], settings.samples, arguments.json, len(prompts) * settings.samples > 1)
            with printed:
                generator.write(prompts[batch], settings, printed.piece, printed.end)
            work.advance(len(prompts[batch]))


def _converse(generator: "TextGenerator", settings: "Settings", as_json: bool) -> None:
    """Continues line after line; Ctrl-C ends a text, and at a prompt the command, as the end of the input does."""
    for place, text in enumerate(_lines()):
        try:
            prompt = generator.prompt(text, place, f"line {place + 1}")
        except UserError as error:
            print(f"generate: {error}", file=sys.stderr, flush=True)
            continue
        printed = Printed([(None, text)], settings.samples, as_json, settings.samples > 1)
        try:
            with printed:
                generator.write([prompt], settings, printed.piece, printed.end)
        except KeyboardInterrupt:
            print("generate: interrupted", file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed:
        import readline  # noqa: F401  input() then edits its line
    while True:
        try:
            if typed:
                line = input("> ")
            elif not (line := sys.stdin.readline()):
                return
            yield line.removesuffix("\n")
        except EOFError:
            print()
            return
        except UnicodeError as error:
            raise UserError(f"standard input is not text in UTF-8 ({error}): convert it first") from error
