"""The 70B-class SCT step on one machine: seconds of each phase, cold and warm, and measured peak memory.

The paper's exact work (arXiv 2604.00733): 80 blocks of width 8192 and feed-forward width 28672, rank 32, 452,216,320
parameters in float32, input (1, 8, 8192). Ours against a plain reference, and ours with real attention (RoPE, causal,
64 heads of 128, 8 key-value heads; embeddings excluded). Each run is a fresh process, and the kinds take turns.
Cold is the first step, which allocates gradients and moments; warm is the median of the later ones.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import command_line, report

WIDTH, FFN_WIDTH, RANK, TOKENS = 8192, 28672, 32, 8
HEADS, KV_HEADS = 64, 8
PARAMETERS_PER_BLOCK = 5_652_704
PHASES = ("forward", "backward", "AdamW", "QR", "total")
LEAST_SPEEDUP = 3.0
MOST_BYTES = 7.2e9


class Stopwatch:
    """Seconds by phase; the clock runs on from one phase to the next."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def __call__(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self.seconds["total"] += now - self._last
        self._last = now


Step = Callable[[Stopwatch], None]


def reference(blocks: int) -> tuple[nn.Module, Callable[[], Step]]:
    from benchmarks.seventy_b_reference import Block, retract

    model = nn.Sequential(*(Block(WIDTH, FFN_WIDTH, RANK) for _ in range(blocks)))

    def prepare() -> Step:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        x_BTD = torch.randn(1, TOKENS, WIDTH)

        def step(watch: Stopwatch) -> None:
            loss = model(x_BTD).square().mean()
            watch("forward")
            loss.backward()
            watch("backward")
            optimizer.step()
            optimizer.zero_grad()
            watch("AdamW")
            retract(model)
            watch("QR")

        return step

    return model, prepare


def ours(blocks: int) -> tuple[nn.Module, Callable[[], Step]]:
    from lrtrain.nn.projection import LinearCallable

    class AddedBlock(nn.Module):
        """The paper's block: the four attention projections are added up, there is no attention."""

        def __init__(self, linear: LinearCallable) -> None:
            super().__init__()
            self.attention_norm = nn.RMSNorm(WIDTH, eps=1e-6)
            self.attention = nn.ModuleList(linear(WIDTH, WIDTH) for _ in range(4))
            self.mlp_norm = nn.RMSNorm(WIDTH, eps=1e-6)
            self.mlp = SwiGLU(WIDTH, FFN_WIDTH, linear)

        def forward(self, x_BTD: Tensor) -> Tensor:
            h_BTD = self.attention_norm(x_BTD)
            for projection in self.attention:
                x_BTD = x_BTD + projection(h_BTD)
            return x_BTD + self.mlp(self.mlp_norm(x_BTD))

    from lrtrain.nn.decoder import SwiGLU

    model = nn.Sequential(*(AddedBlock(_spectral) for _ in range(blocks)))
    return model, lambda: _stepping_in_backward(model, model)


def attention(blocks: int) -> tuple[nn.Module, Callable[[], Step]]:
    from lrtrain.nn.decoder import Block
    from lrtrain.nn.rotary import rotary_angles

    model = nn.ModuleList(
        Block(WIDTH, HEADS, KV_HEADS, FFN_WIDTH, _spectral, _spectral, norm_eps=1e-6) for _ in range(blocks)
    )

    def forward(x_BTD: Tensor) -> Tensor:
        rope_TE = rotary_angles(TOKENS, WIDTH // HEADS, 10000.0, x_BTD.device)
        for index, block in enumerate(model):
            x_BTD = block(x_BTD, rope_TE, None, index)
        return x_BTD

    return model, lambda: _stepping_in_backward(model, forward)


def _spectral(in_features: int, out_features: int) -> nn.Module:
    from lrtrain.nn.spectral import SpectralLinear

    return SpectralLinear(in_features, out_features, rank=RANK, init="paper")


def _stepping_in_backward(model: nn.Module, forward: Callable[[Tensor], Tensor]) -> Step:
    """One fused AdamW and one retraction a block, inside the backward pass."""
    from lrtrain.constraints import StiefelRetraction, find_factors
    from lrtrain.optim.optimizer_in_backward import step_in_backward

    watches: list[Stopwatch] = []
    optimizers = []
    for block in model.children():
        optimizer = torch.optim.AdamW(block.parameters(), lr=1e-4, fused=True)
        retraction = StiefelRetraction().hold(find_factors(block)[1])

        def retract(*_: object, retraction: StiefelRetraction = retraction) -> None:
            watches[-1]("AdamW")
            retraction.after_step()
            watches[-1]("QR")

        optimizer.register_step_pre_hook(lambda *_: watches[-1]("backward"))
        optimizer.register_step_post_hook(retract)
        optimizers.append(optimizer)
    step_in_backward(optimizers)
    x_BTD = torch.randn(1, TOKENS, WIDTH)

    def step(watch: Stopwatch) -> None:
        watches[:] = [watch]
        loss = forward(x_BTD).square().mean()
        watch("forward")
        loss.backward()
        watch("backward")

    return step


KINDS = {"reference": reference, "ours": ours, "attention": attention}


def measure(kind: str, blocks: int, warm_steps: int) -> dict[str, Any]:
    """One cold and some warm steps in this process."""
    if kind != "reference":
        from lrtrain.runtime.allocator import keep_freed_memory

        keep_freed_memory()  # as `lrtrain fit` does
    torch.manual_seed(0)
    start = time.perf_counter()
    model, prepare = KINDS[kind](blocks)
    parameters = sum(p.numel() for p in model.parameters())
    assert kind == "attention" or parameters == blocks * PARAMETERS_PER_BLOCK
    initialization = time.perf_counter() - start
    step = prepare()
    cold = Stopwatch()
    step(cold)
    warm = []
    for _ in range(warm_steps):
        warm.append(Stopwatch())
        step(warm[-1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bases = [p.detach() for name, p in model.named_parameters() if name.rpartition(".")[2] in "UV"]
    error = max(float((x.mT @ x - torch.eye(RANK)).abs().max()) for x in bases)
    return {
        "parameters": parameters,
        "initialization": initialization,
        "cold": cold.seconds,
        "warm": {phase: statistics.median(watch.seconds[phase] for watch in warm) for phase in PHASES},
        "peak": peak,
        "orthonormality_error": error,
    }


def in_fresh_process(kind: str, blocks: int, warm_steps: int) -> dict[str, Any]:
    """`measure` in a new interpreter, which imports only what the kind needs."""
    command = ["--run", kind, "--blocks", str(blocks), "--warm-steps", str(warm_steps)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.seventy_b", *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def rows_of(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over the runs, a row for each kind and temperature; targets where the issue sets one."""
    rows = []
    for temperature in ("cold", "warm"):
        for kind, results in runs.items():
            seconds = {p: statistics.median(run[temperature][p] for run in results) for p in PHASES}
            baseline = statistics.median(run[temperature]["total"] for run in runs["reference"])
            speedup = baseline / seconds["total"]
            peak = max(run["peak"] for run in results)
            met: bool | str = peak <= MOST_BYTES and (kind == "attention" or speedup >= LEAST_SPEEDUP)
            rows.append(
                {
                    "kind": kind,
                    "step": temperature,
                    **{f"{phase} s": value for phase, value in seconds.items()},
                    "speed-up": speedup,
                    "peak GB": peak / 1e9,
                    "max |UᵀU − I|": max(run["orthonormality_error"] for run in results),
                    "initialization s": statistics.median(run["initialization"] for run in results),
                    "met": "-" if kind == "reference" else met,
                }
            )
    return rows


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind [3]")
    parser.add_argument("--warm-steps", type=int, default=3, help="warm steps of each process [3]")
    parser.add_argument("--blocks", type=int, default=80, help="fewer for a quick look [80]")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="the reference is always run")
    parser.add_argument("--run", choices=KINDS, help="measure one kind in this process and print its JSON")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args.run, args.blocks, args.warm_steps)))
        return
    kinds = [kind for kind in KINDS if kind in {"reference", *args.kinds}]
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(args.repeats):
        for kind in kinds:
            runs[kind].append(in_fresh_process(kind, args.blocks, args.warm_steps))
    targets = f"speed-up ≥ {LEAST_SPEEDUP:g} cold and warm, peak ≤ {MOST_BYTES / 1e9:g} GB"
    report(rows_of(runs), "seventy_b", args.out, target=targets, blocks=args.blocks)


if __name__ == "__main__":
    main()
