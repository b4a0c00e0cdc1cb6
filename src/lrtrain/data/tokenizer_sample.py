"""The tokenizer of a request: the one that it names, or one trained on a sample of its documents."""

from collections.abc import Iterator

from tokenizers import Tokenizer

from lrtrain.data.documents import read_documents
from lrtrain.data.encode import held_out
from lrtrain.data.listing import Part
from lrtrain.data.spec import PrepareSpec
from lrtrain.data.tokenizer import load_tokenizer, train_tokenizer
from lrtrain.runtime.long_work import LongWork

SAMPLE_CHARACTERS = 100_000_000  # what a tokenizer is trained on at most, taken evenly from all parts


def make_tokenizer(spec: PrepareSpec, parts: list[Part]) -> Tokenizer:
    """The tokenizer that the request names, or one trained on a sample of all `parts`."""
    if spec.tokenizer is not None:
        return load_tokenizer(spec.tokenizer)
    assert spec.train_vocab_size is not None
    total = min(SAMPLE_CHARACTERS, sum(part.size for part in parts))
    with LongWork(f"Training a tokenizer of {spec.train_vocab_size:,} tokens", total, "characters") as work:
        return train_tokenizer(_told(_sample(spec, parts), total, work), spec.train_vocab_size)


def _told(texts: Iterator[str], total: int, work: LongWork) -> Iterator[str]:
    """The texts as they are, with a word of how many are read, then that the library merges pairs."""
    for text in texts:
        yield text
        work.advance(len(text))
    work.update(total, "merging pairs of tokens")


def _sample(spec: PrepareSpec, parts: list[Part]) -> Iterator[str]:
    """Training documents from every part, in proportion to its size; all of them where they are few enough."""
    total = sum(part.size for part in parts)
    for part in parts:
        # A file system that tells no sizes gets equal shares.
        share = SAMPLE_CHARACTERS * part.size // total if total else SAMPLE_CHARACTERS // len(parts)
        taken = 0
        for document in read_documents(part, spec.text_column):
            if not held_out(document.text, spec.val_fraction):
                yield document.text
                taken += len(document.text)
            if taken > share:
                break
