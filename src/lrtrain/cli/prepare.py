"""`lrtrain prepare`: turn documents into token shards that `lrtrain fit` reads."""

import argparse
import time
from typing import Any

from lrtrain.cli.arguments import Arguments, announce, positive
from lrtrain.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Prepare a data set, a part of one, or the whole of its parts, and print what it holds."""
    arguments = vars(_parser().parse_args(argv))
    out, merging = arguments.pop("out"), arguments.pop("merge", False)
    number, of = arguments.pop("part", None), arguments.pop("of", None)
    if (number is None) != (of is None) or (merging and number is not None):
        raise UserError("give --part I and --of N together, or --merge alone: parts first, then merge them")
    announce(f"prepare: {'merging' if merging else 'making'} {out} …")

    from lrtrain.data.merge import merge
    from lrtrain.data.preparation import prepare
    from lrtrain.data.shares import prepare_share
    from lrtrain.data.spec import PrepareSpec

    started = time.monotonic()
    if number is not None:
        share = prepare_share(PrepareSpec(**arguments), out, number, of)
        if share is not None:
            _print_splits({"train": share.train, "val": share.val})
            print(f"part {number} of {of}; {time.monotonic() - started:.1f} s; {out}")
        return 0
    if merging:
        workers = arguments.pop("workers", None)
        manifest = merge(out, arguments, workers)
    else:
        manifest = prepare(PrepareSpec(**arguments), out)
    _print_splits({name: manifest.split(name) for name in ("train", "val")})
    print(f"vocabulary {manifest.vocab_size:,} ({manifest.dtype}); {time.monotonic() - started:.1f} s; {out}")
    return 0


def _print_splits(splits: dict[str, Any]) -> None:
    for name, split in splits.items():
        ratio = f", {split.bytes / split.tokens:.2f} bytes a token" if split.tokens else ""
        print(f"{name:5}  {split.documents:,} documents, {split.bytes:,} bytes, {split.tokens:,} tokens{ratio}")


def _parser() -> Arguments:
    parser = Arguments(
        prog="lrtrain prepare",
        description="Turn documents into token shards. A preparation that was interrupted goes on where it stopped.",
        epilog="A file that is named is read whatever its suffix, as text where no format knows it. A folder stands "
        "for its files of a known suffix, at any depth; hidden ones (.name) are left out. A glob stands for the names "
        "that it matches, as in a shell: files and folders, no hidden ones; ** is any depth. Links are followed, and a "
        "file that is reached twice is read once. What is left out is counted and named. On several machines: the same "
        "command with --part $SLURM_ARRAY_TASK_ID --of 16 in a Slurm array (sbatch --array=0-15), or --part "
        "$JOB_COMPLETION_INDEX --of 16 in an indexed job of Kubernetes, with --out in a folder that all share; then "
        "lrtrain prepare --merge --out FOLDER once. The data set is the one that a single machine would have made.",
        argument_default=argparse.SUPPRESS,  # PrepareSpec has the defaults
    )
    parser.add_argument("--out", required=True, metavar="FOLDER|URL", help="where the data set goes")
    parser.add_argument(
        "--source",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="files, folders, globs or URLs (hf://…, s3://…) of .txt .md .rst .py .html (.htm .xhtml) .dict .jsonl "
        "(.jsonlines .ndjson .json) .parquet, also .gz .dz .zst .bz2 .xz; or stdlib, the text of Python's standard "
        "library (default), or site-packages, sources and documentation of the packages installed for it",
    )
    parser.add_argument("--text-column", metavar="NAME", help="the column or key with the text (text)")
    parser.add_argument("--tokenizer", metavar="FILE|NAME", help="a tokenizer.json or a Hugging Face name")
    parser.add_argument("--train-vocab-size", type=int, metavar="N", help="train a byte-level BPE of N tokens instead")
    parser.add_argument("--val-fraction", type=float, metavar="F", help="share held out (0.05)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop at N training tokens, inside a document")
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        metavar="CLASS",
        help="a document format of your own, as my_format.Csv; may be repeated",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that tokenize, one a core at most (16 of them)",
    )
    parser.add_argument("--part", type=int, metavar="I", help="make part I of N alone, counted from 0; needs --of")
    parser.add_argument("--of", type=positive, metavar="N", help="in how many parts the data set is made")
    parser.add_argument("--merge", action="store_true", help="make the data set of its N parts, and delete them")
    return parser
