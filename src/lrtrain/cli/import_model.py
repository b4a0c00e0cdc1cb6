"""`lrtrain import`: a Llama of transformers as a checkpoint of ours."""

from lrtrain.cli.arguments import Arguments, announce, positive
from lrtrain.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Writes the checkpoint, its recipe and its tokenizer, and says what is in them.

    Raises:
        UserError: whatever cannot be imported, or not whole; nothing is left then.
    """
    parser = Arguments(
        prog="lrtrain import",
        description="Make a checkpoint of a Llama that transformers loads: a folder with config.json and safetensors, "
        "a .gguf file, or the name of a model on the Hugging Face hub (owner/name, or owner/name/file.gguf). Every "
        "command reads the checkpoint; beside it are the recipe with which lrtrain fit goes on from its weights, and "
        "its tokenizer. Weights become float32. What our decoder has not (biases, sliding windows, other activations, "
        "quantized folders) is refused by the name of its field, and no code of a model is run.",
    )
    parser.add_argument("source", help="a folder, a .gguf file, or a name on the hub")
    parser.add_argument("--out", required=True, metavar="FILE.ckpt", help="the checkpoint; it must not be there yet")
    parser.add_argument(
        "--rank", type=positive, metavar="R", help="factorize: every projection at rank R, at most its smaller side"
    )
    parser.add_argument("--rank-ratio", type=float, metavar="X", help="or at rank X · its input width")
    parser.add_argument(
        "--energy",
        type=float,
        metavar="E",
        help="or at the rank that holds this share of its squared singular values; one whose factors would be more "
        "numbers than its weight stays dense",
    )
    parser.add_argument(
        "--kind", choices=["low_rank", "spectral"], help="of the factors: A Bᵀ (default) or V diag(s) Uᵀ"
    )
    parser.add_argument(
        "--parts", choices=["attention", "mlp", "both"], help="whose projections are factorized (default both)"
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="a tokenizer.json in place of the model's (default: the model's)"
    )
    arguments = parser.parse_args(argv)

    far = (arguments.rank, arguments.rank_ratio, arguments.energy)
    for name in ("kind", "parts"):
        if (value := getattr(arguments, name)) and far == (None, None, None):
            raise UserError(f"--{name} {value}: give --rank, --rank-ratio or --energy with it")
    announce(f"import: reading {arguments.source} …")

    from lrtrain.config.importing import Factorization, check_import, import_model

    parts = ("attention", "mlp") if arguments.parts in (None, "both") else (arguments.parts,)
    asked = Factorization(arguments.kind or "low_rank", parts, *far)
    import_model(arguments.source, check_import(arguments.out, asked), asked, arguments.tokenizer)
    return 0
