"""Training tokens per second of S on this machine, through the Trainer with all default callbacks.

Dense S against transformers' `LlamaForCausalLM` of the same shape in a bare loop (same micro-batch, precision, AdamW
and gradient clipping), and low-rank S (Spectron) against dense S times the ratio of their FLOPs per token. The three
train in processes of their own and take turns, a micro-batch each: what else the machine does falls on all alike.

Micro-batches with and without an optimizer step are timed apart: a step of N micro-batches takes N − 1 of the first and
one of the second. `step tokens` is N in tokens: that of the run here, and the recipe's 524,288.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch

from benchmarks.measure import command_line, report
from benchmarks.runs import recipe, stdlib_shards

VOCABULARY = 32000
RECIPE_STEP = 524_288
LEAST_OF_TRANSFORMERS = 1.0
LEAST_OF_FLOPS = 0.8


class Turns:
    """One contender's side: hands over after each micro-batch and times only its own turns."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._since = 0.0

    def begin(self) -> None:
        """Says that the contender is ready, and waits for its first turn."""
        self._hand_over(None)

    def end(self) -> None:
        """Reports the turn's seconds and waits for the next."""
        self._hand_over(time.perf_counter() - self._since)

    def _hand_over(self, seconds: float | None) -> None:
        self._connection.send(seconds)
        self._connection.recv()
        self._since = time.perf_counter()


class TakeTurns(L.Callback):
    """Between two micro-batches of a Trainer: everything else that the Trainer does is inside a turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._turns.begin()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._turns.end()


def ours(connection: Connection, name: str, block: int, batch: int, accumulate: int, steps: int) -> None:
    """Trains a shipped recipe through the Trainer, then sends its forward FLOPs per token."""
    with tempfile.TemporaryDirectory() as runs:
        cli = recipe(
            name,
            Path(runs),
            data__path=stdlib_shards(VOCABULARY),
            data__prepare=None,
            data__block_size=block,
            data__batch_size=batch,
            data__num_workers=0,
            trainer__accelerator="cpu" if not torch.cuda.is_available() else "gpu",
            trainer__max_steps=steps,
            trainer__accumulate_grad_batches=accumulate,
            trainer__val_check_interval=10**6,
            trainer__num_sanity_val_steps=0,
            trainer__log_every_n_steps=1,
            trainer__enable_progress_bar=False,
        )
        cli.trainer.callbacks.append(TakeTurns(Turns(connection)))
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        connection.send(cli.model.decoder.flops_per_token(block))


def transformers_loop(connection: Connection, name: str, block: int, batch: int, accumulate: int, steps: int) -> None:
    """The bare loop: autocast, AdamW with the recipe's values, clipping at 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lrtrain.config.train_parser import fastest_precision
    from lrtrain.runtime.allocator import keep_freed_memory

    keep_freed_memory()  # as for ours
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        intermediate_size=2048,
        max_position_embeddings=block,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        use_cache=False,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mixed = fastest_precision() == "bf16-mixed"
    model: torch.nn.Module = LlamaForCausalLM(config)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(0, VOCABULARY, (steps * accumulate, batch, block), device=device)
    turns = Turns(connection)
    turns.begin()
    for index, x in enumerate(tokens, start=1):
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            loss = model(input_ids=x, labels=x).loss / accumulate
        loss.backward()
        if index % accumulate == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        turns.end()
    connection.send(0)


Contender = Callable[..., None]
CONTENDERS: dict[str, tuple[Contender, str]] = {
    "transformers, dense": (transformers_loop, ""),
    "ours, dense": (ours, "dense_S"),
    "ours, low-rank": (ours, "spectron_S"),
}


def take_turns(block: int, batch: int, accumulate: int, steps: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of every micro-batch of every contender, and their FLOPs per token."""
    stdlib_shards(VOCABULARY)
    spawn = multiprocessing.get_context("spawn")
    connections: dict[str, Any] = {}
    processes = []
    seconds: dict[str, list[float]] = {label: [] for label in CONTENDERS}
    try:
        for label, (contender, name) in CONTENDERS.items():
            connections[label], theirs = spawn.Pipe()
            processes.append(spawn.Process(target=contender, args=(theirs, name, block, batch, accumulate, steps)))
            processes[-1].start()
            theirs.close()  # so that a contender that dies is an EOFError here and no endless wait
            connections[label].recv()
        for _ in range(steps * accumulate):
            for label, connection in connections.items():
                connection.send("your turn")
                seconds[label].append(connection.recv())
        for connection in connections.values():
            connection.send("the end")
        flops = {label: connection.recv() for label, connection in connections.items()}
    except EOFError:
        for process in processes:
            process.kill()
        raise
    for process in processes:
        process.join()
    return seconds, flops


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--block", type=int, default=512, help="tokens of a sequence [512]")
    parser.add_argument("--batch", type=int, default=2, help="sequences of a micro-batch [2]")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches of an optimizer step [4]")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, of which the first is left out [4]")
    args = parser.parse_args()
    seconds, flops = take_turns(args.block, args.batch, args.accumulate, args.steps)
    tokens = args.block * args.batch
    rows = []
    for batches in (args.accumulate, RECIPE_STEP // tokens):
        speed = {}
        for label, turns in seconds.items():
            later = list(enumerate(turns, start=1))[args.accumulate :]
            plain = median(t for index, t in later if index % args.accumulate)
            stepping = median(t for index, t in later if index % args.accumulate == 0)
            speed[label] = batches * tokens / ((batches - 1) * plain + stepping)
        dense = speed["ours, dense"]
        ratio_of_flops = flops["ours, dense"] / flops["ours, low-rank"]
        for label, least, baseline in (
            ("transformers, dense", None, speed["transformers, dense"]),
            ("ours, dense", LEAST_OF_TRANSFORMERS, speed["transformers, dense"]),
            ("ours, low-rank", LEAST_OF_FLOPS, dense * ratio_of_flops),
        ):
            ratio = speed[label] / baseline
            rows.append(
                {
                    "training": label,
                    "step tokens": batches * tokens,
                    "tokens/s": speed[label],
                    "against": baseline,
                    "ratio": ratio,
                    "required": "-" if least is None else f"≥ {least}",
                    "met": "-" if least is None else ratio >= least,
                }
            )
    note = f"{tokens} ({args.batch} × {args.block}); dense / low-rank FLOPs per token {ratio_of_flops:.3f}"
    report(rows, "throughput", args.out, micro_batch_tokens=note)


if __name__ == "__main__":
    main()
