"""What a GPU makes of it, in one table under ten minutes: training of S and L, and the products of an optimizer's step.

    python -m benchmarks.gpu            (or make bench-gpu)

Dense and low-rank, eager and compiled: tokens a second in steps of 524,288 tokens, as the recipes have them; model
FLOPs utilization (3 · forward FLOPs against the card's peak for bfloat16); the share of the optimizer's step, with
norms, roots and retraction; and the peak of the allocator. A step is that many times the median micro-batch, and one
such step; the Trainer, data and logging are not in it. Then the polar factors of all factors of a model against the
usual form of the iteration, and a retraction of that many orthonormal factors against torch's QR.

What is aimed at on an H100 or H200, and not measured yet: dense S at 40 % of the bfloat16 peak and more when compiled,
low-rank somewhat below that share, since its products are thinner, and the optimizer's step at 1 % or less.
"""

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import command_line, compare, report, synchronize
from benchmarks.orthonormalize import householder
from benchmarks.polar import usual
from benchmarks.runs import ROOT
from benchmarks.shapes import factor_shapes
from lrtrain.config.plan_parser import parse
from lrtrain.constraints import attached
from lrtrain.linalg import orthonormalize, polar
from lrtrain.nn import Decoder
from lrtrain.nn.projection import hidden_parameters
from lrtrain.optim import CombinedOptimizer, build_optimizer

STEP_TOKENS = 524_288
RECIPES = {"dense": "dense", "low-rank": "spectron"}
OF_TRAINING = ("tokens/s", "MFU %", "micro-batch ms", "step ms", "step share %", "peak GB")
COLUMNS = ("what", *OF_TRAINING, "usual ms", "ours ms", "ratio")


class Trained(NamedTuple):
    """A model on the device with what a step of it takes."""

    decoder: Decoder
    optimizer: CombinedOptimizer
    constraints: dict[str, Any]


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["S", "L"], help="of the recipes [S L]")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a micro-batch; halved until it fits [16]")
    parser.add_argument("--block", type=int, default=2048, help="tokens of a sequence [2048]")
    parser.add_argument("--repeats", type=int, default=8, help="micro-batches that are timed [8]")
    parser.add_argument("--seconds", type=float, default=540, help="after which nothing new is begun [540]")
    parser.add_argument("--toy", action="store_true", help="tiny models, on a CPU too: tries this file out")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.toy:
        line = "benchmarks.gpu: no GPU here (torch.cuda.is_available() is false); --toy tries this out on a CPU"
        print(line, file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started, rows, left_out = time.perf_counter(), [], []
    cases = [*_kernels(options, device), *_trainings(options, device)]
    for name, case in cases:
        if time.perf_counter() - started > options.seconds:
            left_out.append(name)
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        rows.append(dict.fromkeys(COLUMNS, "-") | {"what": name} | case())
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if not rows:
        print(f"benchmarks.gpu: --seconds {options.seconds:g} leaves no time for anything", file=sys.stderr)
        return 2
    rows.sort(key=lambda row: row["ratio"] != "-")
    notes = {"left_out": f"{', '.join(left_out)}: {options.seconds:.0f} s were over"} if left_out else {}
    report(rows, "gpu", options.out, seconds=round(time.perf_counter() - started), block=options.block, **notes)
    return 0


def _trainings(options: Any, device: torch.device) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for size in options.sizes:
        for form, recipe in RECIPES.items():
            for compiled in (False, True):
                name = f"{form} {size}, {'compiled' if compiled else 'eager'}"
                argv = ["--config", str(ROOT / "configs" / f"{recipe}_{size}.yaml")]
                yield name, partial(_training, options, argv, compiled, device)


def _training(options: Any, argv: list[str], compiled: bool, device: torch.device) -> dict[str, Any]:
    """Speed, memory and share of a recipe's training at the largest micro-batch, of those halved, that fits."""
    if options.toy:
        sizes = {"width": 64, "depth": 2, "heads": 2, "ffn_width": 96, "vocab_size": 300}
        argv = [*argv, *(f"--model.decoder.{key}={value}" for key, value in sizes.items())]
    batch = options.batch
    while True:
        try:
            return _measured(argv, compiled, device, batch, options)
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                return {"peak GB": "does not fit"}
            batch //= 2
        gc.collect()
        torch.cuda.empty_cache()


def _measured(argv: list[str], compiled: bool, device: torch.device, batch: int, options: Any) -> dict[str, Any]:
    from lrtrain.training.callbacks.throughput import peak_flops

    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = _trained(argv, device, compiled, "aot_eager" if options.toy else "inductor")
    vocabulary = model.decoder.head_VD.shape[0]
    tokens = torch.randint(0, vocabulary, (batch, options.block + 1), device=device)
    passes, steps = [], []
    for _ in range(3 + options.repeats):
        passes.append(_seconds(lambda: _pass(model.decoder, tokens, device)))
        steps.append(_seconds(lambda: _step(model)))
    each, step = median(passes[3:]), median(steps[3:])
    micro_batches = max(1, STEP_TOKENS // (batch * options.block))
    seconds = micro_batches * each + step
    rate = micro_batches * batch * options.block / seconds
    peak = peak_flops(device, torch.bfloat16)
    return {
        "tokens/s": rate,
        "MFU %": 100 * rate * 3 * model.decoder.flops_per_token(options.block) / peak if peak else "-",
        "micro-batch ms": f"{1e3 * each:,.1f} ({batch} × {options.block})",
        "step ms": 1e3 * step,
        "step share %": 100 * step / seconds,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else "-",
    }


def _trained(argv: list[str], device: torch.device, compiled: bool, backend: str) -> Trained:
    """A recipe's decoder and optimizers as training has them; weights and state in float32."""
    parser, config = parse(argv)
    made = parser.instantiate(config).model
    with torch.device(device):
        decoder = made.decoder()
    for block in decoder.blocks if compiled else ():
        block.forward = torch.compile(block.forward, backend=backend)
    module = nn.ModuleDict({"decoder": decoder})
    optimizer, _ = build_optimizer(dict(module.named_parameters()), hidden_parameters(module), made.optimizers)
    return Trained(decoder, optimizer, attached(None, module, optimizer))


def _pass(decoder: Decoder, tokens: torch.Tensor, device: torch.device) -> None:
    with torch.autocast(device.type, torch.bfloat16):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()


def _step(model: Trained) -> None:
    nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
    for constraint in model.constraints.values():
        constraint.before_step(model.optimizer)
    model.optimizer.step()
    for constraint in model.constraints.values():
        constraint.after_step()
    model.optimizer.zero_grad()


def _seconds(act: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    act()
    synchronize()
    return time.perf_counter() - start


def _kernels(options: Any, device: torch.device) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for size in options.sizes:
        shapes = Counter([(96, 16), (64, 16)]) if options.toy else Counter(factor_shapes(size))
        for name, ours, other in (("polar factors", polar, usual), ("retraction", orthonormalize, householder)):
            yield (
                f"{name} of all factors of {size}",
                partial(_against, shapes, ours, other, device, options.repeats),
            )


def _one_by_one(step: Callable[..., Any], matrices: Tensor) -> list[Any]:
    return [step(matrix) for matrix in matrices]


def _against(
    shapes: Counter[tuple[int, int]],
    ours: Callable[..., Any],
    other: Callable[..., Any],
    device: torch.device,
    repeats: int,
) -> dict[str, Any]:
    """Milliseconds for as many matrices of each shape as a model has, one batch a shape for ours, one by one else."""
    spent = {"usual": 0.0, "ours": 0.0}
    for (rows, rank), count in shapes.items():
        x = torch.linalg.qr(torch.randn(count, rows, rank, device=device)).Q.contiguous()
        x += 1e-3 * torch.randn_like(x) / rows**0.5
        seconds = compare({"usual": partial(_one_by_one, other, x), "ours": partial(ours, x)}, max(3, repeats // 2))
        spent = {name: spent[name] + seconds[name] for name in spent}
    ratio = spent["usual"] / spent["ours"]
    return {"usual ms": 1e3 * spent["usual"], "ours ms": 1e3 * spent["ours"], "ratio": ratio}


if __name__ == "__main__":
    sys.exit(main())
