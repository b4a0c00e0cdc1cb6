"""Documents in batches, and their tokens from several processes, in order."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np

from lrtrain.data.documents import read_documents
from lrtrain.data.encoder import Encoder
from lrtrain.data.encoder_processes import EncoderProcesses
from lrtrain.data.listing import Part

BATCH_CHARACTERS = 2**20
BATCH_DOCUMENTS = 1024
CHARACTERS_HERE = BATCH_CHARACTERS  # tokenized in this process before others are started


@dataclass(frozen=True)
class Batch:
    """Documents that stand together in the sources, and where reading goes on after them."""

    texts: list[str]
    part: int
    position: int
    offset: int


def held_out(text: str, fraction: float) -> bool:
    """Whether a text belongs to the held-out split: its BLAKE2b hash, as a number in [0, 1), is below `fraction`.

    It depends on the text alone, so the split is the same in every run and one text is never on both sides.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) < fraction * 2**64


def read_batches(parts: list[Part], text_column: str, part: int = 0, position: int = 0) -> Iterator[Batch]:
    """The documents of `parts` in order from `position` of part number `part`, about a megabyte at a time.

    A batch may span parts: then it goes on after its last document.
    """
    texts: list[str] = []
    size = offset = 0
    for number in range(part, len(parts)):
        for document in read_documents(parts[number], text_column, position if number == part else 0):
            texts.append(document.text)
            size += len(document.text)
            part, position, offset = number, document.position, document.offset
            if size >= BATCH_CHARACTERS or len(texts) == BATCH_DOCUMENTS:
                yield Batch(texts, part, position, offset)
                texts, size = [], 0
    if texts:
        yield Batch(texts, part, position, offset)


def encode_batches(
    batches: Iterable[Batch], encoder: Encoder, workers: int
) -> Generator[tuple[Batch, list[np.ndarray]], None, None]:
    """Each batch, in order, with the tokens of its documents, the end-of-text token after each.

    At most `workers` processes make them, which end with the iterator; for the first megabyte none is worth starting.
    """
    size, batches = 0, iter(batches)
    while size < CHARACTERS_HERE:
        if (batch := next(batches, None)) is None:
            return
        yield batch, encoder.documents(batch.texts)
        size += sum(map(len, batch.texts))
    with EncoderProcesses(encoder, workers) as processes:
        submitted = ((batch, processes.submit(batch.texts)) for batch in batches)
        ahead = deque(islice(submitted, 2 * workers))
        while ahead:
            batch, tokens = ahead.popleft()
            ahead.extend(islice(submitted, 1))
            yield batch, tokens.result()
