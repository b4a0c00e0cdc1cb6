"""Texts that a checkpoint's model continues, as they come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from lrtrain.config.trained_model import read_trained
from lrtrain.data.encoder import Encoder
from lrtrain.data.tokenizer import end_of_text
from lrtrain.nn import Sampling, TextStream, generate, order_for_decoding
from lrtrain.nn.generation import Continuation
from lrtrain.runtime.errors import UserError

ENDINGS = {"stop token": "end of text"}


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        text: As it was given.
        tokens: Of it; what an empty one begins with is an end-of-text token, as a document does.
        place: Its number among all prompts, on which its draws depend.
    """

    text: str
    tokens: list[int]
    place: int


@dataclass(frozen=True)
class Settings:
    """How prompts are continued: tokens at most, the rules of the draws, samples of each, seed, strings that end it."""

    max_new_tokens: int
    sampling: Sampling
    samples: int
    seed: int
    stops: Sequence[str]


@dataclass(frozen=True)
class Text:
    """One sample of one prompt.

    Attributes:
        text: What follows the prompt, without the stop string that ended it.
        tokens: All that were drawn, those of a stop string among them; not the end of text.
        log_probabilities: Of each token, in nats, by the model itself, before temperature and the other rules.
        ending: `end of text`, `stop string`, `length` (max_new_tokens are there) or `context` (that is full).
    """

    text: str
    tokens: list[int]
    log_probabilities: list[float]
    ending: str


class TextGenerator:
    """The model of a checkpoint, ready to continue texts.

    Args:
        checkpoint: A file or a folder of shards.
        device: Where it computes; a GPU where there is one when None.
        dtype: Of weights and cache.
        context: Tokens of a text at most, prompt and continuation; when None, what an imported model was made for, or
            `data.block_size` of the run.

    Attributes:
        context: The same; None where the run's data names no block_size.
        tokenizer: Of the checkpoint.

    Raises:
        UserError: no checkpoint of ours, a device that is not there, or without memory.
    """

    def __init__(self, checkpoint: Path, device: str | None, dtype: torch.dtype, context: int | None) -> None:
        trained = read_trained(checkpoint)
        imported = trained.imported
        self.checkpoint = checkpoint
        self.context = context or trained.context
        self.tokenizer = trained.tokenizer
        self._end = end_of_text(trained.tokenizer)
        # An imported model knows the texts of its tokenizer, with what that puts before them, and its own ends.
        self._before = put_before(trained.tokenizer) if imported else []
        self._ends = {self._end, *(imported.stop_tokens() if imported else ())}
        self._encoder = Encoder(trained.tokenizer, np.dtype(np.int64))
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.decoder = trained.decoder.to(device=place, dtype=dtype)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {place}: {_first_line(error)}; --device cpu needs none") from error

    def prompt(self, text: str, place: int, where: str) -> Prompt:
        """Encodes a text as training did: what it spells is text, no control token.

        Raises:
            UserError: it is longer than the context.
        """
        tokens = self._before + self._encoder.documents([text])[0][:-1].tolist()
        if self.context is not None and len(tokens) > self.context:
            raise UserError(
                f"{where}: {len(tokens):,} tokens, and the context has {self.context:,}, the longest sequence of the "
                "training (data.block_size): shorten it, or go beyond by --context"
            )
        return Prompt(text, tokens, place)

    def write(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        on_piece: Callable[[int, str], None],
        on_end: Callable[[int, Text], None],
    ) -> None:
        """Continues all prompts at once; row p · samples + s is the sample s of prompt p.

        Args:
            prompts: Of `prompt`.
            settings: How.
            on_piece: Takes a row and the text that has come of it, as soon as no later token can change it.
            on_end: Takes a row and all of it, as soon as it has ended.

        Raises:
            UserError: the model computes NaN, the decoder keeps no cache, or the device has no memory left.
        """
        streams = [
            TextStream(self.tokenizer.decode, prompt.tokens, settings.stops)
            for prompt in prompts
            for _ in range(settings.samples)
        ]

        def watch(row: int, token: int) -> bool:
            if piece := streams[row].add(token):
                on_piece(row, piece)
            return streams[row].stopped

        def end(row: int, found: Continuation) -> None:
            if piece := streams[row].end():
                on_piece(row, piece)
            ending = "stop string" if streams[row].stopped else ENDINGS.get(found.ending, found.ending)
            on_end(row, Text(streams[row].text, found.tokens, found.log_probabilities, ending))

        order_for_decoding(self.decoder, len(streams))
        try:
            with torch.inference_mode():
                generate(
                    self.decoder,
                    [prompt.tokens or [self._end] for prompt in prompts],
                    settings.max_new_tokens,
                    settings.sampling,
                    samples=settings.samples,
                    seeds=[f"{settings.seed} {prompt.place}" for prompt in prompts],
                    stop_tokens=self._ends,
                    context=self.context,
                    watch=watch,
                    on_end=end,
                )
        except FloatingPointError as error:
            raise UserError(f"checkpoint {self.checkpoint}: {error}; name an earlier checkpoint") from error
        except torch.OutOfMemoryError as error:
            raise UserError(f"{_first_line(error)}; fewer prompts and samples at once need less") from error
        except ValueError as error:
            raise UserError(f"checkpoint {self.checkpoint}: {error}") from error


def put_before(tokenizer: Tokenizer) -> list[int]:
    """The tokens that a tokenizer puts before any text, as `<s>`."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return list(whole[: next(starts, 0)])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
