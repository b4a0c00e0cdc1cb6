"""Tokens a second and core of `lrtrain prepare` against LitData's `optimize`, on the same text and tokenizer.

`optimize` is used in three ways. As litgpt prepares OpenWebText: the inputs are documents, and each call encodes one.
As litgpt prepares TinyLlama's data and LitData's guide does: the inputs are files, and each call encodes its documents
one by one. And with batches of documents, which no guide has. All get the same number of workers; each case is a
program of its own, and they take turns. A second and core is processor time, of the program and its processes: others
on the machine do not count. Each prepares the whole text and an eighth of it: from the difference comes what a long
preparation has, without the start of worker processes. Ours splits off held-out documents, keeps control tokens out,
counts bytes, hashes and syncs the shards besides.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import command_line, report

REQUIRED = 1.5
DOCUMENT = 3000  # characters, about a web page's
KEYS = {
    "clock": "tokens/s",
    "core": "tokens/s and core",
    "lasting": "tokens/s and core of a long one",
}
CASES = ("lrtrain", "optimize, a document a call", "optimize, a file a call", "optimize, batches")


def write_text(folder: Path, megabytes: float, files: int) -> None:
    """Python files of the standard library and the installed packages, cut at lines into documents, as JSON lines."""
    paths = sysconfig.get_paths()
    sources = (file for root in ("stdlib", "purelib") for file in sorted(Path(paths[root]).rglob("*.py")))
    left = megabytes * 1e6
    seen: set[Path] = set()
    streams = [(folder / f"{number}.jsonl").open("w") for number in range(files)]
    for count, source in enumerate(sources):
        text = source.read_text(errors="ignore")
        if source in seen or left <= 0 or not text.strip():
            continue
        seen.add(source)
        for document in _documents(text):
            streams[count % files].write(json.dumps({"text": document}) + "\n")
            left -= len(document)
    for stream in streams:
        stream.close()


def _documents(text: str) -> Iterator[str]:
    document = ""
    for line in text.splitlines(keepends=True):
        document += line
        if len(document) >= DOCUMENT:
            yield document
            document = ""
    if document.strip():
        yield document


def texts(file: str) -> Iterator[str]:
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def encode_document(number: int, documents: list[str], tokenizer: Any, end: int) -> Iterator[Any]:
    import torch

    yield torch.tensor([*tokenizer.encode(documents[number], add_special_tokens=False).ids, end], dtype=torch.int)


def encode_file(file: str, tokenizer: Any, end: int) -> Iterator[Any]:
    import torch

    for text in texts(file):
        yield torch.tensor([*tokenizer.encode(text, add_special_tokens=False).ids, end], dtype=torch.int)


def encode_batches(file: str, tokenizer: Any, end: int) -> Iterator[Any]:
    import torch

    batch = list(texts(file))
    for start in range(0, len(batch), 1024):
        for encoding in tokenizer.encode_batch(batch[start : start + 1024], add_special_tokens=False):
            yield torch.tensor([*encoding.ids, end], dtype=torch.int)


def run_case(case: str, folder: Path, workers: int, part: str) -> dict[str, float]:
    """Prepare the text, or the `part` of it, once in this process: seconds, processor seconds and tokens."""
    files = sorted(str(file) for file in (folder / part).glob("*.jsonl"))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        # What it takes to start is imported before, where that is possible.
        import torch
        from litdata import StreamingDataset, TokensLoader, optimize

        from lrtrain.data.preparation import prepare
        from lrtrain.data.spec import PrepareSpec
        from lrtrain.data.tokenizer import end_of_text, load_tokenizer

        torch.set_num_threads(1)
        tokenizer = load_tokenizer(str(folder / "tokenizer"))
        settings: dict[str, Any] = {"tokenizer": tokenizer, "end": end_of_text(tokenizer)}
        begun, used = time.perf_counter(), _processor_seconds()
        if case == "lrtrain":
            spec = PrepareSpec(files, tokenizer=str(folder / "tokenizer"), workers=workers, val_fraction=0.05)
            manifest = prepare(spec, out)
            tokens = manifest.train.tokens + manifest.val.tokens
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            inputs: list[Any] = files
            fn: Any = partial(encode_batches if case.endswith("batches") else encode_file, **settings)
            if case.endswith("a document a call"):
                documents = [text for file in files for text in texts(file)]
                inputs, fn = list(range(len(documents))), partial(encode_document, documents=documents, **settings)
            optimize(
                fn, inputs, out, num_workers=workers, chunk_bytes="200MB", item_loader=TokensLoader(), verbose=False
            )
            tokens = 0
        seconds, processor = time.perf_counter() - begun, _processor_seconds() - used
        if not tokens:
            tokens = len(StreamingDataset(out, item_loader=TokensLoader(block_size=1)))
    return {"seconds": seconds, "processor": processor, "tokens": tokens}


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--megabytes", type=float, default=48, help="of text [48]")
    parser.add_argument(
        "--vocabulary", type=int, default=32000, help="tokens of the tokenizer, which is trained [32000]"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize, of ours and of theirs [1]")
    parser.add_argument("--repeats", type=int, default=3, help="turns [3]")
    parser.add_argument("--case", nargs=3, help="one turn of a case, on a part of the text in a folder")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args.case[0], Path(args.case[1]), args.workers, args.case[2])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "text").mkdir()
        (folder / "tokenizer").mkdir()
        (folder / "less").mkdir()
        write_text(folder / "text", args.megabytes, files=8 * args.workers)
        for file in sorted((folder / "text").iterdir())[: args.workers]:
            (folder / "less" / file.name).symlink_to(file)
        from lrtrain.data.tokenizer import train_tokenizer

        sample = [text for file in sorted((folder / "text").glob("*.jsonl")) for text in list(texts(str(file)))[::8]]
        train_tokenizer(sample, args.vocabulary).save(str(folder / "tokenizer" / "tokenizer.json"))
        found: dict[str, list[dict[str, dict[str, float]]]] = {case: [] for case in CASES}
        for _ in range(args.repeats):
            for case in CASES:
                found[case].append({part: _turn(case, temporary, args.workers, part) for part in ("less", "text")})
    tokens = {turn["text"]["tokens"] for turns in found.values() for turn in turns}
    assert len(tokens) == 1, f"not the same tokens: {tokens}"
    rates = {
        case: {key: statistics.median(_rates(turn)[key] for turn in turns) for key in KEYS}
        for case, turns in found.items()
    }
    best = {key: max(rate[key] for case, rate in rates.items() if case != CASES[0]) for key in KEYS}
    ratios = {key: round(rates[CASES[0]][key] / best[key], 2) for key in KEYS}
    report(
        [{"case": case, **{KEYS[key]: value for key, value in rate.items()}} for case, rate in rates.items()],
        "preparation",
        args.out,
        tokens=int(tokens.pop()),
        turns={case: [_rates(turn) for turn in turns] for case, turns in found.items()},
        ratio_to_the_best=ratios,
        required=REQUIRED,
        met=ratios["lasting"] >= REQUIRED,
    )


def _turn(case: str, folder: str, workers: int, part: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.preparation", "--workers", str(workers), "--case", case, folder, part]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _rates(turn: dict[str, dict[str, float]]) -> dict[str, float]:
    less, text = turn["less"], turn["text"]
    return {
        "clock": text["tokens"] / text["seconds"],
        "core": text["tokens"] / text["processor"],
        "lasting": (text["tokens"] - less["tokens"]) / (text["processor"] - less["processor"]),
    }


if __name__ == "__main__":
    main()
