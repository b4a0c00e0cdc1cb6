"""Tokenizers: loading one from a file or a hub, training a byte-level BPE, and the end-of-text token."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError

END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
PIECE = 2**17  # characters that the library is given at once
SMALLEST_VOCABULARY = 256 + 1  # every byte, and the end of text


def load_tokenizer(name_or_path: str) -> Tokenizer:
    """Loads a `tokenizer.json` (or that of a folder that holds one), or the tokenizer of a Hugging Face repository.

    Truncation, padding and dropout that the file asks for are switched off: they would change a training text in
    silence, the last one by chance.
    Raises UserError when the file is missing or is no tokenizer, the hub does not answer, or no end-of-text token
    is in the vocabulary.
    """
    file = local_file(name_or_path)
    try:
        tokenizer = Tokenizer.from_pretrained(name_or_path) if file is None else Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception or panics; the hub's errors share no base class
        reason = " ".join(str(error).split())[:200]
        if file is not None:
            what = f"{file} is not a tokenizer file ({reason}): give a tokenizer.json of the tokenizers library"
        else:
            what = (
                f"tokenizer {name_or_path} is no file here and cannot be had from the Hugging Face hub "
                f"({type(error).__name__}: {reason}): give the path of a tokenizer.json"
            )
        raise UserError(what) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    end_of_text(tokenizer, name_or_path)
    return tokenizer


def local_file(name_or_path: str) -> Path | None:
    """The file that `load_tokenizer` reads, or None for a name on a hub. Raises UserError for a path to nothing."""
    file = Path(name_or_path).expanduser()
    if file.is_dir():
        file = file / "tokenizer.json"
    if file.is_file():
        return file
    if name_or_path.endswith(".json") or name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"tokenizer {file} does not exist: give the path of a tokenizer.json or a Hugging Face name")
    return None


def read_tokenizer(path: str, sha256: str) -> str:
    """The text of `tokenizer.json` in a data set's folder or URL.

    Raises:
        UserError: it cannot be read, or is not the one that the shards were made with.
    """
    file = f"{path}/tokenizer.json"
    try:
        content = stores.read(file) if stores.is_remote(path) else Path(file).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({type(error).__name__}): copy it there, or prepare the data again"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{file} is not the tokenizer of the shards beside it: copy that there, or prepare the data again"
        )
    return content.decode("utf-8")


def end_of_text(tokenizer: Tokenizer, name: str = "tokenizer.json") -> int:
    """The id of the token that separates documents: of its usual names one that is special, else one that is there.

    Raises UserError if there is none.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    for token in sorted(END_OF_TEXT, key=lambda token: token not in special):  # `</s>` may be a tag of web pages
        if (index := tokenizer.token_to_id(token)) is not None:
            return int(index)
    raise UserError(
        f"tokenizer {name} has no end-of-text token: add one of {' '.join(END_OF_TEXT)} to it as a special token"
    )


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id, which is what an embedding needs; ids may have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Trains a byte-level BPE of at most `vocabulary` tokens, all 256 bytes and `<|endoftext|>` among them.

    It is smaller where the texts hold fewer pairs to merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces: the library takes some 100 bytes for each character. A space begins a word of ours."""
    start = 0
    while len(text) - start > PIECE:
        cut = text.rfind(" ", start + 1, start + PIECE)
        end = cut if cut > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]
