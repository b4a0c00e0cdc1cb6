"""The data set of a configuration: there, whole, large enough, and with a vocabulary that the model has."""

from collections.abc import Iterator
from pathlib import Path

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.units import short
from lrtrain.studies.doctor.finding import Finding, failed, passed


def check_data(path: str, prepares: bool, block: int, batch: int, vocabulary: int | None) -> Iterator[Finding]:
    """Manifest and shards (by size) of `data.path`.

    Args:
        path: A folder or a URL.
        prepares: The configuration says what to prepare it from.
        block: Tokens of a sequence.
        batch: Sequences of a step's micro-batches on all processes.
        vocabulary: Tokens that the model knows; None where that is not known.
    """
    from lrtrain.data.manifest import MANIFEST, SPLITS, Manifest
    from lrtrain.data.shards import check_shards

    if prepares and "://" not in path and not Path(path, MANIFEST).exists():
        yield passed("data", f"{path} is not there yet: fit prepares it first")
        return
    try:
        manifest = Manifest.load(path)
        if "://" not in path:
            for name in SPLITS:
                check_shards(Path(path) / name, manifest.split(name), manifest.dtype, contents=False)
    except UserError as error:
        what, _, advice = str(error).rpartition(": ")
        unreadable = what.startswith("cannot read")
        yield failed("data", str(error) if unreadable else what, "correct data.path" if unreadable else advice)
        return
    blocks = manifest.train.blocks(block + 1)
    found = f"{path}: {short(manifest.train.tokens)} training tokens in {len(manifest.train.chunks)} shards"
    if blocks < batch:
        yield failed(
            "data", f"{found}, {blocks} blocks of {block} + 1, less than {batch} a step", "lower data.batch_size"
        )
    elif manifest.val.blocks(block + 1) == 0:
        yield failed("data", f"{found}, and no held-out block of {block} + 1", "lower data.block_size, or prepare more")
    elif vocabulary is not None and manifest.vocab_size > vocabulary:
        yield failed(
            "data",
            f"{found}; its tokenizer has {manifest.vocab_size} tokens, model.decoder.vocab_size is {vocabulary}",
            f"set model.decoder.vocab_size to at least {manifest.vocab_size}",
        )
    else:
        yield passed("data", f"{found}, a vocabulary of {manifest.vocab_size}")
