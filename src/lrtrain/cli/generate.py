"""`lrtrain generate`: continues a text with a trained checkpoint."""

import math
import sys
from pathlib import Path

from lrtrain.cli.arguments import Arguments, announce
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.stores import is_remote


def main(argv: list[str]) -> int:
    """Prints the prompt and its continuation."""
    parser = Arguments(prog="lrtrain generate", description="Continues a text with a trained checkpoint.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="runs",
        help="a .ckpt, a run directory, or a folder of runs (its newest), or the URL of one of these in a store",
    )
    parser.add_argument("--prompt", help="text to continue; read from standard input when left out")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="upper bound of the tokens written (default 128)"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-p", type=float, default=0.95, help="share of probability drawn from (default 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.temperature < math.inf:
        raise UserError(f"--temperature {arguments.temperature}: must be a number of at least 0")
    if not 0 < arguments.top_p <= 1:
        raise UserError(f"--top-p {arguments.top_p}: must be in (0, 1]")
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {arguments.max_new_tokens}: must be at least 1")
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed {arguments.seed}: must be in [0, 2^63)")
    prompt, path = _prompt(arguments.prompt), Path(arguments.checkpoint)
    if path.exists() or is_remote(arguments.checkpoint):
        announce(f"generate: reading {arguments.checkpoint} …")

    import numpy as np

    from lrtrain.checkpoint.remote_runs import cached
    from lrtrain.config.trained_model import load, newest_checkpoint
    from lrtrain.data.encoder import Encoder
    from lrtrain.data.tokenizer import end_of_text
    from lrtrain.nn import Sampling, generate, text_after

    checkpoint = cached(arguments.checkpoint) if is_remote(arguments.checkpoint) else newest_checkpoint(path)
    decoder, tokenizer = load(checkpoint)
    stop = end_of_text(tokenizer)
    # What the prompt spells is text, as it was in training.
    tokens = Encoder(tokenizer, np.dtype(np.int64)).documents([prompt])[0][:-1].tolist()
    sampling = Sampling(temperature=arguments.temperature, top_p=arguments.top_p)
    try:
        # A document begins after an end-of-text token, so an empty prompt is the beginning of one.
        (found,) = generate(
            decoder,
            [tokens or [stop]],
            arguments.max_new_tokens,
            sampling,
            seeds=[arguments.seed],
            stop_tokens=[stop],
        )
    except FloatingPointError as error:
        raise UserError(f"checkpoint {checkpoint}: {error}; name an earlier checkpoint") from error
    print(prompt + text_after(tokens, found.tokens, tokenizer.decode))
    return 0


def _prompt(given: str | None) -> str:
    try:
        prompt = sys.stdin.read() if given is None else given
        prompt.encode()
    except UnicodeError as error:
        where = "standard input" if given is None else "--prompt"
        raise UserError(f"{where} is not text in UTF-8 ({error}): convert it first") from error
    return prompt
