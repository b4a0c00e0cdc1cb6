"""What to make a data set from: the request that a recipe or the command line states."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lrtrain.data.tokenizer import SMALLEST_VOCABULARY
from lrtrain.runtime.errors import UserError


@dataclass
class PrepareSpec:
    """What to make a data set from. Exactly one of `tokenizer` and `train_vocab_size` must be given.

    Args:
        source: Where the text is: `stdlib` (the text of Python's own standard library), `site-packages` (that of the
            packages installed for it), or files, folders, globs and fsspec URLs (`hf://datasets/…`, `s3://…`) of .txt,
            .md, .py, .html, .dict, .jsonl, .parquet, also .gz, .zst, .bz2, .xz; what each stands for:
            `lrtrain prepare --help`.
        text_column: The column of .parquet, or the key of .jsonl, that holds the text.
        tokenizer: A tokenizer.json, a folder with one, or the name of a Hugging Face repository.
        train_vocab_size: Train a byte-level BPE of so many tokens on (at most 100 MB of) the training documents.
        val_fraction: The share of documents that is held out, chosen by a hash of their text; between 0 and 1.
        max_tokens: Stop at so many training tokens, in the middle of a document; null reads everything.
        formats: Class paths of further document formats (`my_format.Csv`, see `lrtrain.data.DocumentFormat`).
        workers: Processes that tokenize, one a core at most; null takes up to 16. The result does not depend on it.
    """

    source: list[str] = field(default_factory=lambda: ["stdlib"])
    text_column: str = "text"
    tokenizer: str | None = None
    train_vocab_size: int | None = None
    val_fraction: float = 0.05
    max_tokens: int | None = None
    formats: list[str] = field(default_factory=list)
    workers: int | None = None

    def request(self) -> dict[str, Any]:
        """What determines the result: every field but `workers`."""
        return {key: value for key, value in asdict(self).items() if key != "workers"}

    def check(self) -> None:
        """Raise UserError for the first value that cannot be meant."""
        if isinstance(self.source, str) or not self.source or not all(self.source):
            raise UserError(f"source is {self.source!r}: give a list of at least one path, glob, URL or stdlib")
        if (self.tokenizer is None) == (self.train_vocab_size is None):
            raise UserError(
                "exactly one of tokenizer and train_vocab_size must be given: the first takes a tokenizer "
                "that exists, the second trains one"
            )
        if self.train_vocab_size is not None and self.train_vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"train_vocab_size is {self.train_vocab_size}: a byte-level vocabulary has at least "
                f"{SMALLEST_VOCABULARY} tokens"
            )
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction is {self.val_fraction}: give a share between 0 and 1, such as 0.05")
        for name in ("max_tokens", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}: give at least 1, or leave it out")
