"""`lrtrain prepare`: turn documents into token shards that `lrtrain fit` reads."""

import time

from lrtrain.cli.arguments import Arguments, announce


def main(argv: list[str]) -> int:
    """Prepare a data set and print what it holds. Raises UserError for a mistake."""
    parser = Arguments(
        prog="lrtrain prepare",
        description="Turn documents into token shards. A preparation that was interrupted goes on where it stopped.",
        epilog="A file that is named is read whatever its suffix, as text where no format knows it. A folder stands "
        "for its files of a known suffix, at any depth; hidden ones (.name) are left out. A glob stands for the names "
        "that it matches, as in a shell: files and folders, no hidden ones; ** is any depth. Links are followed, and a "
        "file that is reached twice is read once. What is left out is counted and named.",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER|URL", help="where the data set goes")
    parser.add_argument(
        "--source",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="files, folders, globs or URLs (hf://…, s3://…) of .txt .md .rst .py .jsonl (.jsonlines .ndjson .json) "
        ".parquet, also .gz .zst .bz2 .xz; or stdlib, the text of Python's standard library (default)",
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="the column or key with the text (text)")
    parser.add_argument("--tokenizer", metavar="FILE|NAME", help="a tokenizer.json or a Hugging Face name")
    parser.add_argument("--train-vocab-size", type=int, metavar="N", help="train a byte-level BPE of N tokens instead")
    parser.add_argument("--val-fraction", type=float, default=0.05, metavar="F", help="share held out (0.05)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop at N training tokens, inside a document")
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        default=[],
        metavar="CLASS",
        help="a document format of your own, as my_format.Csv; may be repeated",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads that tokenize (one a core)")
    arguments = parser.parse_args(argv)
    announce(f"prepare: making {arguments.out} …")

    from lrtrain.data.preparation import prepare
    from lrtrain.data.spec import PrepareSpec

    started = time.monotonic()
    out = arguments.out
    del arguments.out
    arguments.source = arguments.source or ["stdlib"]
    manifest = prepare(PrepareSpec(**vars(arguments)), out)
    for name in ("train", "val"):
        split = manifest.split(name)
        print(
            f"{name:5}  {split.documents:,} documents, {split.bytes:,} bytes, {split.tokens:,} tokens, "
            f"{manifest.bytes_per_token(name):.2f} bytes a token"
        )
    print(f"vocabulary {manifest.vocab_size:,} ({manifest.dtype}); {time.monotonic() - started:.1f} s; {out}")
    return 0
