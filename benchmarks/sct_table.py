"""What each switch of SCT is worth: held-out loss at the best learning rate of each variant, mean over seeds.

    python -m benchmarks.sct_table                                    # everything at quickstart scale
    python -m benchmarks.sct_table --scale larger --given-lr          # at the best rates of quickstart scale
    python -m benchmarks.sct_table --steps 60 --seeds 0 --runs /tmp/probe

Every variant is an overlay on configs/quickstart.yaml. The learning rate of its projections (the rest keeps the
recipe's) is searched first, on the first seed: by factors of two, on while the best is at an end. Then the best one is
repeated on the other seeds. With `--given-lr` the variant's own is taken. Each run is a process `lrtrain fit` with one
thread, two run at a time; what has finished under `--runs` is not repeated, so an interrupted table goes on where it
stopped.

The dense decoders have the depth and heads of the spectral one and the width and feed-forward width that bring their
parameters, or their FLOPs a token, to its own.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import command_line, report
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SpectralLinear
from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs import Job, around, train
from lrtrain.studies.jobs.processes import workers

CONFIGS = Path(__file__).parents[1] / "configs"
VOCABULARY, BLOCK, RANK_RATIO = 4096, 256, 0.25


@dataclass(frozen=True)
class Scale:
    """A size of the model and a length of the run, all else as in quickstart."""

    width: int
    depth: int
    heads: int
    ffn_width: int
    steps: int


SCALES = {"quickstart": Scale(256, 4, 4, 768, 200), "larger": Scale(384, 6, 6, 1152, 200)}


@dataclass(frozen=True)
class Variant:
    """A line of the table: overlays on quickstart, a learning rate, and the initial scale of W.

    The rate is the first of a search, and the best at quickstart's scale where docs/results.md has the line.

    `init` is `svd` (initial s of a dense draw, whatever the overlay says), `small` (a standard deviation √2 / width of
    the entries of W, that of the SCT paper's initial s), or empty: the overlay's, 1/√in where it names none. `equal` is
    what a dense decoder has in common with the spectral one.
    """

    label: str
    overlays: tuple[str, ...]
    lr: float
    init: str = ""
    equal: str = ""


VARIANTS = {
    "reference": Variant("SCT reference: AdamW, QR, the paper's initial s", ("sct_reference",), 0.016),
    "init": Variant("  with initial s of a dense draw", ("sct_init",), 0.004),
    "decay_s": Variant("  with weight decay 0.1 on s", ("sct_decay_s",), 0.016),
    "tangent": Variant("  with tangent projection of gradients", ("sct_tangent",), 0.016),
    "transport": Variant("  with momentum transport", ("sct_transport",), 0.008),
    "angle": Variant("  with angle-unit lr (Adam's direction)", ("sct_angle",), 0.04),
    "preserving": Variant("  with function-preserving retraction", ("sct_preserving",), 0.004),
    "polar": Variant("  with orthogonalized update", ("sct_polar",), 0.04),
    "polar_preserving": Variant("orthogonalized, function-preserving", ("sct_polar_preserving",), 0.04),
    "bounded": Variant("orthogonalized, function-preserving, bounded", ("sct_bounded",), 0.035),
    "polar_preserving_dense_s": Variant(
        "orthogonalized, function-preserving, s of a dense draw", ("sct_polar_preserving",), 0.02, "svd"
    ),
    "bounded_dense_s": Variant(
        "orthogonalized, function-preserving, bounded, s of a dense draw", ("sct_bounded",), 0.14, "svd"
    ),
    "spectron": Variant("Spectron, look-ahead", (), 0.07),
    "spectron_small": Variant("Spectron, look-ahead, paper's initial scale", (), 0.035, "small"),
    "dense_parameters": Variant("dense, AdamW, equal parameters", ("dense",), 0.001, equal="parameters"),
    "dense_flops": Variant("dense, AdamW, equal FLOPs", ("dense",), 0.001, equal="flops"),
    "dense_small_parameters": Variant(
        "dense, AdamW, paper's initial scale, equal parameters", ("dense",), 0.0005, "small", "parameters"
    ),
    "dense_small_flops": Variant(
        "dense, AdamW, paper's initial scale, equal FLOPs", ("dense",), 0.0005, "small", "flops"
    ),
    "dense_muon_parameters": Variant("dense, Muon, equal parameters", ("dense", "muon"), 0.01, equal="parameters"),
    "dense_muon_small_parameters": Variant(
        "dense, Muon, paper's initial scale, equal parameters", ("dense", "muon"), 0.01, "small", "parameters"
    ),
    "dense_muon_small_flops": Variant(
        "dense, Muon, paper's initial scale, equal FLOPs", ("dense", "muon"), 0.01, "small", "flops"
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Searches, repeats, and reports."""
    parser = command_line(__doc__)
    parser.add_argument("--scale", choices=SCALES, default="quickstart")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="optimizer steps of each run [the scale's]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs [runs]")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time [2]")
    parser.add_argument("--given-lr", action="store_true", help="the variants' learning rates, without a search")
    options = parser.parse_args(argv)
    scale = SCALES[options.scale]
    runs = Runs(options.scale, scale, options.steps or scale.steps, options.runs)
    with workers(options.jobs) as pool:
        rows = list(pool.map(lambda name: _row(runs, name, options.seeds, not options.given_lr), options.variants))
    searches = {name: row.pop("searched") for name, row in zip(options.variants, rows, strict=True)}
    report(rows, f"sct_table_{options.scale}", options.out, steps=runs.steps, seeds=options.seeds, searches=searches)


def _row(runs: "Runs", name: str, seeds: Sequence[int], search: bool) -> dict[str, Any]:
    """Searches a variant's learning rate, or takes it as given, and repeats the best."""
    given = VARIANTS[name].lr

    def loss(lr: float) -> float:
        return runs.loss(name, lr, seeds[0])

    searched = around(given, loss) if search else {given: loss(given)}
    lr = min(searched, key=lambda rate: searched[rate])
    losses = [searched[lr], *(runs.loss(name, lr, seed) for seed in seeds[1:])]
    decoder = runs.decoder(name)
    return {
        "variant": VARIANTS[name].label,
        "lr": lr,
        "held-out loss": round(statistics.mean(losses), 4),
        "std": round(statistics.stdev(losses), 4) if len(losses) > 1 else 0.0,
        "parameters": sum(p.numel() for p in decoder.parameters()),
        "MFLOPs a token": round(decoder.flops_per_token(BLOCK) / 1e6, 3),
        "searched": {f"{rate:g}": round(loss, 4) for rate, loss in sorted(searched.items())},
    }


class Runs:
    """Trains what has not been trained yet, under `<folder>/sct-<scale>-<variant>-…`."""

    def __init__(self, name: str, scale: Scale, steps: int, folder: Path) -> None:
        self.name, self.scale, self.steps, self.folder = name, scale, steps, folder

    def decoder(self, variant: str) -> Decoder:
        """The variant's decoder, without memory."""
        spectral = _decoder(self.scale, self.scale.width, self.scale.ffn_width, SpectralLinear, rank_ratio=RANK_RATIO)
        equal = VARIANTS[variant].equal
        if equal:
            return _dense(self.scale, spectral, equal)
        if not VARIANTS[variant].overlays:
            return _decoder(self.scale, self.scale.width, self.scale.ffn_width, LowRankLinear, rank_ratio=RANK_RATIO)
        return spectral

    def loss(self, variant: str, lr: float, seed: int) -> float:
        """Held-out loss at the end of a run, infinite where it diverged."""
        job = self._job(variant, lr, seed)
        outcome = train(job)
        if outcome.metric is None:
            raise UserError(f"{job.name} has not finished: {outcome.reason}")
        print(f"{job.name}: {outcome.metric:.4f}", flush=True)
        return outcome.metric

    def _job(self, variant: str, lr: float, seed: int) -> Job:
        overlays = (CONFIGS / "methods" / f"{overlay}.yaml" for overlay in VARIANTS[variant].overlays)
        decoder = self.decoder(variant)
        settings = {
            "seed_everything": seed,
            "model.optimizers.hidden.lr": f"{lr:g}",
            "model.decoder.width": decoder.width,
            "model.decoder.depth": self.scale.depth,
            "model.decoder.heads": self.scale.heads,
            "model.decoder.ffn_width": _ffn_width(decoder),
            "trainer.max_steps": self.steps,
            "trainer.val_check_interval": self.steps,
            "checkpoints.every_n_steps": self.steps,
            **_initial(VARIANTS[variant].init, decoder.width),
        }
        name = f"sct-{self.name}-{variant}-{self.steps}-{lr:g}-{seed}"
        return Job(name, (CONFIGS / "quickstart.yaml", *overlays), settings, self.folder)


def _initial(init: str, width: int) -> dict[str, Any]:
    """The settings of a variant's initial scale."""
    if init == "small":
        return {f"model.decoder.{part}.std": f"{math.sqrt(2) / width:.4g}" for part in ("attention", "mlp")}
    return {"model.decoder.attention.init": init} if init else {}


def _decoder(scale: Scale, width: int, ffn_width: int, projection: type, **arguments: Any) -> Decoder:
    def linear(in_features: int, out_features: int) -> torch.nn.Module:
        return projection(in_features, out_features, **arguments)

    with torch.device("meta"):
        return Decoder(VOCABULARY, width, scale.depth, scale.heads, ffn_width, linear, linear)


def _dense(scale: Scale, like: Decoder, equal: str) -> Decoder:
    """The dense decoder nearest to another's count, its feed-forward width nearest to 3 times its width."""

    def size(decoder: Decoder) -> int:
        return sum(p.numel() for p in decoder.parameters()) if equal == "parameters" else decoder.flops_per_token(BLOCK)

    step = 2 * scale.heads
    candidates = []
    for width in range(scale.width // 2 // step * step, scale.width + 1, step):
        narrow, wide = (size(_decoder(scale, width, ffn, DenseLinear)) for ffn in (8, 16))
        ffn_width = 8 + 8 * round((size(like) - narrow) / (wide - narrow))
        if ffn_width >= 8:
            candidates.append((abs(ffn_width / width - 3), width, ffn_width))
    _, width, ffn_width = min(candidates)
    return _decoder(scale, width, ffn_width, DenseLinear)


def _ffn_width(decoder: Decoder) -> int:
    return int(decoder.get_submodule("blocks.0.mlp.up").out_features)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
