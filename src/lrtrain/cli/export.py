"""`lrtrain export`: a checkpoint as a folder that transformers loads."""

import argparse
from pathlib import Path

from lrtrain.cli.arguments import Arguments, announce, positive
from lrtrain.config.run_names import place_of
from lrtrain.runtime.stores import is_remote


def main(argv: list[str]) -> int:
    """Writes the folder, and says what is in it and how far its logits are from ours.

    Raises:
        UserError: whatever cannot be exported, or not whole; nothing is left then.
    """
    parser = Arguments(
        prog="lrtrain export",
        description="Write a checkpoint as a folder that transformers loads, and compare the logits of both. "
        "Merged, the default, is a stock Llama, which anything that reads those takes: every projection is one matrix. "
        "Factorized keeps A and B, or U, s and V, and comes with a file of code, which transformers runs with "
        "trust_remote_code=True.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="runs",
        help="a .ckpt, a run's name or directory, a folder of runs (its newest), or the URL of one of these in a store",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the folder to write, or its URL in a store; it must not be there yet",
    )
    parser.add_argument("--factorized", action="store_true", help="keep the factors: fewer numbers and fewer FLOPs")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the weights (default float32)",
    )
    parser.add_argument(
        "--shard-size", default="5GB", metavar="SIZE", help="largest size of one file of weights (default 5GB)"
    )
    parser.add_argument(
        "--truncate-rank", type=positive, metavar="R", help="lower every projection to rank R; tells the held-out loss"
    )
    parser.add_argument(
        "--energy", type=float, metavar="E", help="or to the rank that holds this share of its squared singular values"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="prepared shards to take the held-out loss on (default: the run's)"
    )
    parser.add_argument(
        "--context", type=positive, metavar="TOKENS", help="longest sequence (default: data.block_size of the run)"
    )
    parser.add_argument(
        "--license", metavar="ID", help="what the model card says, as apache-2.0 (default: that of an imported model)"
    )
    arguments: argparse.Namespace = parser.parse_args(argv)

    from lrtrain.config.export_settings import Export, read_shard_size

    read_shard_size("--shard-size", arguments.shard_size)
    settings = Export(
        "factorized" if arguments.factorized else "merged", arguments.dtype, arguments.shard_size, arguments.license
    )
    path, out = Path(arguments.checkpoint), arguments.out
    if place_of(path) is not None or is_remote(arguments.checkpoint):
        announce(f"export: reading {arguments.checkpoint} …")

    from lrtrain.checkpoint.remote_runs import cached
    from lrtrain.config.exporting import check_export, export
    from lrtrain.config.trained_model import newest_checkpoint

    check_export(out, arguments.truncate_rank, arguments.energy, arguments.data)
    checkpoint = cached(arguments.checkpoint) if is_remote(arguments.checkpoint) else newest_checkpoint(path)
    print(f"{'checkpoint':<15} {checkpoint}")
    export(checkpoint, out, settings, arguments.truncate_rank, arguments.energy, arguments.data, arguments.context)
    return 0
