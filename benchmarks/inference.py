"""Generating text on this machine: prefill and decode speed, memory and size of one model in each of its forms.

The model is low-rank S or L (spectron_<size>) with fresh weights. `low-rank` keeps A and B, `merged` is the same model
with their products, `spectral` keeps U, s and V, `dense` has weights of its own in the shape of `merged`.
`transformers` is its own `generate` on the folder that `lrtrain export` writes of the merged model, greedy like the
others; in float32 its tokens must be those of `merged`. `transformers-factors` is the same on `export --factorized`.

Each form is loaded in a process of its own, and they take turns: one text of `--new` tokens for every prompt in the
batch. Prefill is the time to the first token, decode the median time of each further one. Peak memory is what the
process has resident at most, above what it had before the model was loaded; on disk is what export writes. On a machine
that does other work meanwhile `--threads 1 --clock processor` counts the time in which the process computed, alone.

Required: `merged` decodes at least as fast as transformers; at batch 1 `low-rank` is faster than `merged` by at least
0.8 × the ratio of the bytes that a token reads: all weights but the embedding, of which it reads a row.
"""

import gc
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import command_line, report, synchronize
from benchmarks.shapes import DECODERS, RANK_RATIO, Size

VOCABULARY = 32000
FORMS = ("transformers", "transformers-factors", "merged", "dense", "low-rank", "spectral")
LEAST_OF_TRANSFORMERS = 1.0
LEAST_OF_BYTES = 0.8
HEAD_WIDTH = 64
SIZES = {"quickstart": Size(256, 4, 768), **DECODERS}
"""The first is what a machine computes beside the weights: they are few."""


class Text(NamedTuple):
    """What a turn took: seconds to the first token, median seconds of a further one; and the tokens."""

    first: float
    further: float
    tokens: list[list[int]]


def decoder(form: str, size: str, rank_ratio: float) -> Any:
    """Low-rank (also where its products are wanted), spectral or dense, always with the same random numbers."""
    from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SpectralLinear

    linear: Any = partial(LowRankLinear, rank_ratio=rank_ratio)
    if form == "spectral":
        linear = partial(SpectralLinear, rank_ratio=rank_ratio)
    if form == "dense":
        linear = DenseLinear
    width, depth, ffn_width = SIZES[size]
    torch.manual_seed(0)
    made = Decoder(VOCABULARY, width, depth, width // HEAD_WIDTH, ffn_width, linear, linear)
    return made.eval().requires_grad_(False)


def merged(size: str, rank_ratio: float) -> Any:
    """The low-rank decoder with dense projections of the same weight, in memory as if it had been made with these."""
    from lrtrain.nn.projection import projections

    model, factorized = decoder("dense", size, rank_ratio), decoder("low-rank", size, rank_ratio)
    products = {f"{name}.weight": one.materialize() for name, one in projections(factorized).items()}
    others = {name: weight for name, weight in factorized.state_dict().items() if name in model.state_dict()}
    model.load_state_dict(others | products)
    return model


def export(size: str, rank_ratio: float, dtype: str, folder: Path, keep_factors: bool) -> None:
    """Writes the low-rank model for transformers."""
    from lrtrain.checkpoint.huggingface.exported_folder import write_folder
    from lrtrain.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["any"], 300)
    model = decoder("low-rank", size, rank_ratio)
    write_folder(model, tokenizer, folder, 2048, keep_factors, dtype, 5e9, lambda _: {})


Writer = Callable[[Tensor, int, Callable[[], None]], list[list[int]]]
"""(prompts, new tokens, what is called at each token) -> the new tokens."""


def ours(form: str, size: str, rank_ratio: float, dtype: str, scratch: Path) -> tuple[Writer, int, int]:
    """Our engine, the bytes of its weights, and those of them that a token reads.

    The weights lie in a mapped file, as `lrtrain generate` and transformers read theirs: products take up to 1.1 times
    as long over other memory.
    """
    from lrtrain.nn import Sampling, generate, order_for_decoding

    model = merged(size, rank_ratio) if form == "merged" else decoder(form, size, rank_ratio)
    model = model.to(getattr(torch, dtype))
    torch.save(model.state_dict(), scratch)
    model.load_state_dict(torch.load(scratch, mmap=True), assign=True)
    model = model.requires_grad_(False).to(device())
    weights = sum(p.nbytes for p in model.parameters())

    def write(prompts: Tensor, new: int, at_token: Callable[[], None]) -> list[list[int]]:
        def watch(row: int, token: int) -> bool:
            if row == 0:
                at_token()
            return False

        order_for_decoding(model, len(prompts))  # this and the next as `lrtrain generate`
        with torch.inference_mode():
            found = generate(model, prompts.tolist(), new, Sampling(temperature=0), watch=watch)
        return [one.tokens for one in found]

    return write, weights, weights - model.embedding.weight.nbytes


def transformers_own(folder: str, keep_factors: bool, dtype: str) -> tuple[Writer, int, int]:
    """transformers' `generate` on an exported folder, and the same bytes."""
    from transformers import LlamaForCausalLM

    from lrtrain.checkpoint.huggingface.modeling_factorized_llama import FactorizedLlamaForCausalLM

    kind: Any = FactorizedLlamaForCausalLM if keep_factors else LlamaForCausalLM
    model = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device()).eval()
    model.generation_config.eos_token_id = None
    weights = sum(p.nbytes for p in model.parameters())

    def write(prompts: Tensor, new: int, at_token: Callable[[], None]) -> list[list[int]]:
        def stop(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            at_token()
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        given = {"attention_mask": torch.ones_like(prompts), "pad_token_id": 0, "do_sample": False}
        ids = model.generate(prompts, max_new_tokens=new, stopping_criteria=[stop], **given)
        return ids[:, prompts.shape[1] :].tolist()

    return write, weights, weights - model.get_input_embeddings().weight.nbytes


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def serve(
    connection: Connection, form: str, folder: str, size: str, rank_ratio: float, dtype: str, threads: int, clock: str
) -> None:
    """A form's process: loads, then writes a text for every batch size that it is sent."""
    torch.set_num_threads(threads)
    import transformers  # noqa: F401  both before the memory is looked at

    import lrtrain.nn  # noqa: F401
    from lrtrain.runtime.allocator import give_back_freed_memory

    before = resident("VmRSS")
    if form.startswith("transformers"):
        write, weights, read = transformers_own(folder, form != "transformers", dtype)
    else:
        write, weights, read = ours(form, size, rank_ratio, dtype, Path(f"{folder}.pt"))
    gc.collect()
    give_back_freed_memory()
    connection.send((weights, read))
    for batch, prompt, new in iter(connection.recv, None):
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(0, VOCABULARY, (batch, prompt), generator=generator).to(device())
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        times: list[float] = []

        def at_token(times: list[float] = times) -> None:
            synchronize()
            times.append(CLOCKS[clock]())

        start = CLOCKS[clock]()
        tokens = write(prompts, new, at_token)
        further = median(after - one for one, after in pairwise(times))
        connection.send((Text(times[0] - start, further, tokens), resident("VmHWM") - before))


def resident(field: str) -> int:
    """Bytes of this process that are in memory now (VmRSS), or were at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(size: str, dtype: str, args: Any) -> list[dict[str, Any]]:
    """The rows of a size and a dtype: each form's process is there from the first batch to the last."""
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    model = size, args.rank_ratio, dtype, args.threads, args.clock
    with tempfile.TemporaryDirectory() as scratch:
        folders = {form: str(Path(scratch, form)) for form in args.forms}
        with context.Pool(1) as apart:  # its memory goes with it
            for form, folder in folders.items():
                if form.startswith("transformers"):
                    apart.apply(export, (size, args.rank_ratio, dtype, Path(folder), form != "transformers"))
        sides: dict[str, Connection] = {}
        weights: dict[str, tuple[int, int]] = {}
        processes = []
        for form in args.forms:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, form, folders[form], *model), daemon=True)
            process.start()
            there.close()
            sides[form], weights[form] = here, here.recv()
            processes.append(process)
        for batch in args.batches:
            print(f"{size} {dtype}, {batch} at once …", file=sys.stderr, flush=True)
            texts, peaks = take_turns(sides, batch, args)
            if dtype == "float32" and {"transformers", "merged"} <= {*sides}:
                assert texts["transformers"][0].tokens == texts["merged"][0].tokens, "they write different texts"
            rows += rows_of(size, dtype, batch, texts, peaks, weights, args.prompt)
        for side, process in zip(sides.values(), processes, strict=True):
            side.send(None)
            process.join()
    return rows


def take_turns(sides: dict[str, Connection], batch: int, args: Any) -> tuple[dict[str, list[Text]], dict[str, int]]:
    """`--repeats` texts of each form, in turns, after one that is not timed; and each form's peak memory."""
    texts: dict[str, list[Text]] = {form: [] for form in sides}
    peaks = dict.fromkeys(sides, 0)
    for turn in range(args.repeats + 1):
        for form, side in sides.items():
            side.send((batch, args.prompt, args.new))
            text, peak = side.recv()
            peaks[form] = max(peaks[form], peak)
            if turn:
                texts[form].append(text)
    return texts, peaks


def rows_of(
    size: str,
    dtype: str,
    batch: int,
    texts: dict[str, list[Text]],
    peaks: dict[str, int],
    weights: dict[str, tuple[int, int]],
    prompt: int,
) -> list[dict[str, Any]]:
    """One row a form; ratios are of decode speeds."""
    decode = {form: batch / median(text.further for text in found) for form, found in texts.items()}
    rows = []
    for form, found in texts.items():
        against, least = ("transformers", LEAST_OF_TRANSFORMERS if form == "merged" else None)
        if form in ("low-rank", "spectral") and "merged" in texts:
            against = "merged"
            if form == "low-rank" and batch == 1:
                least = LEAST_OF_BYTES * weights["merged"][1] / weights["low-rank"][1]
        ratio = decode[form] / decode[against] if against in decode and against != form else None
        rows.append(
            {
                "size": size,
                "dtype": dtype,
                "batch": batch,
                "form": form,
                "prefill tokens/s": batch * prompt / median(text.first for text in found),
                "decode tokens/s": decode[form],
                "spread": f"{min(t.further for t in found) * 1e3:.3g}–{max(t.further for t in found) * 1e3:.3g} ms",
                "peak MB": round(peaks[form] / 1e6),
                "disk MB": round(weights[form][0] / 1e6),
                "against": against if ratio else "-",
                "ratio": ratio or "-",
                "required": f"≥ {least:.3g}" if ratio and least else "-",
                "met": ratio >= least if ratio and least else "-",
            }
        )
    return rows


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES], default=["S", "L"])
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], help="[what the hardware computes with]"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--rank-ratio", type=float, default=RANK_RATIO, help="rank / input width [%(default)s]")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt [%(default)s]")
    parser.add_argument("--new", type=int, default=32, help="tokens that follow [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, help="texts of each form and batch [%(default)s]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each process [%(default)s]")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="what is measured [%(default)s]")
    args = parser.parse_args()
    if args.dtypes is None:
        from lrtrain.config.train_parser import fastest_precision

        args.dtypes = ["float32", "bfloat16"] if fastest_precision() == "bf16-mixed" else ["float32"]
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        for dtype in args.dtypes:
            rows += measure(size, dtype, args)
    import transformers

    text = f"{args.repeats} texts of each, {args.prompt} tokens and {args.new} more, prompts of seed = batch"
    report(
        rows,
        "inference",
        args.out,
        texts=text,
        clock=args.clock,
        rank_ratio=args.rank_ratio,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main()
