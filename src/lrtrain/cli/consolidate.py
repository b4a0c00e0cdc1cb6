"""`lrtrain consolidate`: one file of a checkpoint that the processes of a sharded run wrote as a folder."""

from pathlib import Path

from lrtrain.cli.arguments import Arguments, announce
from lrtrain.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Writes the file that one process would have written, with weights, optimizer states and all the rest.

    Raises:
        UserError: the folder is not a whole checkpoint, the file exists already, or the disk refuses.
    """
    parser = Arguments(
        prog="lrtrain consolidate",
        description="Make one file of a checkpoint that several processes wrote as a folder. Every command takes "
        "either; one file is easier to copy, and torch.load reads it anywhere.",
    )
    parser.add_argument("checkpoint", help="a checkpoint folder, as runs/<name>/0001/checkpoints/step-00000500.ckpt")
    parser.add_argument("--out", required=True, metavar="FILE", help="where the file goes")
    arguments = parser.parse_args(argv)
    source, out = Path(arguments.checkpoint), Path(arguments.out)
    if source.is_file():
        raise UserError(f"{source} is one file already: use it as it is")
    if not source.is_dir():
        raise UserError(f"{source} does not exist: name a checkpoint folder of a sharded run")
    if out.exists():
        raise UserError(f"--out {out}: exists already; name a new file")
    announce(f"consolidate: reading {source} …")

    from lrtrain.checkpoint import shard_folder
    from lrtrain.checkpoint.single_file import write_whole

    write_whole(shard_folder.read(source), out)
    print(f"{out}  {out.stat().st_size / 1e6:,.1f} MB")
    return 0
