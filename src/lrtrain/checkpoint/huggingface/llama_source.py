"""A Llama to import, through transformers: a folder, a GGUF file, or a name on a hub."""

import contextlib
import json
import logging as python_logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models

from lrtrain.checkpoint.huggingface.gguf_file import GgufFacts, check_gguf
from lrtrain.checkpoint.huggingface.logit_check import quiet_transformers
from lrtrain.data.tokenizer import end_of_text, load_tokenizer
from lrtrain.runtime.errors import UserError

GGUF = ".gguf"
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """Where a model is.

    Attributes:
        text: As it was asked for.
        place: A folder, or a name on a hub.
        gguf: The file in it, if it is one.
        local: Whether `place` is a folder here.
    """

    text: str
    place: str
    gguf: str | None
    local: bool

    @property
    def name(self) -> str:
        """The last part of a path, as it may be published, or the name on a hub."""
        if not self.local:
            return self.text
        return self.gguf or Path(self.place).resolve().name

    def where(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained`: nothing is asked of a network for a folder, no code of it is run."""
        return {"gguf_file": self.gguf, "local_files_only": self.local, "trust_remote_code": False}


def find_source(text: str) -> Source:
    """What is meant. Raises UserError where that is a path to nothing, or to something else."""
    path = Path(text).expanduser()
    gguf = path.name if path.suffix.lower() == GGUF else None
    place = path.parent if gguf else path
    if gguf and path.is_file():
        return Source(text, str(place), gguf, True)
    if path.is_dir():
        if (path / "config.json").is_file():
            return Source(text, str(path), None, True)
        inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() == GGUF)
        hint = f"name the file, as {path / inside[0]}" if inside else "name a folder that save_pretrained wrote"
        raise UserError(f"import {text}: the folder has no config.json; {hint}")
    if path.exists():
        raise UserError(f"import {text}: expected a folder with config.json and weights, or a {GGUF} file")
    if text.startswith(("/", ".", "~")) or len(place.parts) > 2 or (gguf and place.is_dir()):
        raise UserError(f"import {text}: does not exist; name a folder, a {GGUF} file or a model on a hub")
    return Source(text, place.as_posix(), gguf, False)


@contextlib.contextmanager
def one_line(source: Source, what: str) -> Iterator[None]:
    """Tells in a line, with `what` was read, whatever transformers raises inside `with`, and keeps it quiet."""
    logger = python_logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(python_logging.ERROR)
    try:
        with quiet_transformers():
            yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raise bare Exception or panic, and the hub's errors share no base class
        if not source.local and (why := _of_the_hub(error)):
            raise UserError(f"import {source.text}: there is no such folder here, and {why}") from error
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise UserError(f"import {source.text}: {what} cannot be read ({type(error).__name__}: {reason})") from error
    finally:
        logger.setLevel(level)


def _of_the_hub(error: BaseException) -> str:
    """What a hub's client says at length, in a few words; empty where it is something else."""
    from huggingface_hub import errors

    said = {
        errors.GatedRepoError: "the hub gives that model only to those who have accepted its terms there: do so, and "
        "log in by `hf auth login` or HF_TOKEN",
        errors.RepositoryNotFoundError: "the hub has no model of that name, or a private one, for which `hf auth "
        "login` or HF_TOKEN logs in",
        errors.LocalEntryNotFoundError: "the Hugging Face hub cannot be asked, nor is a copy in its cache: name a "
        f"folder or a {GGUF} file of this machine, or import where there is a network",
    }
    seen: BaseException | None = error
    while seen is not None:
        for kind, line in said.items():
            if isinstance(seen, kind):
                return line
        seen = seen.__cause__ or seen.__context__
    return ""


def stated_config(source: Source) -> tuple[dict[str, Any], GgufFacts | None]:
    """What config.json, or a GGUF's metadata, says of the model, and what else a GGUF does.

    Raises:
        UserError: it cannot be read, or a GGUF says something that transformers would leave out in silence.
    """
    from transformers import PreTrainedConfig

    with one_line(source, "its configuration"):
        facts = check_gguf(_file(source, source.gguf), source.text) if source.gguf else None
        where = {"gguf_file": source.gguf, "local_files_only": source.local}
        stated: dict[str, Any] = PreTrainedConfig.get_config_dict(source.place, **where)[0]
    return stated, facts


def read_model(source: Source, config: Any) -> Any:
    """transformers' model in float32, with every weight from the source.

    Raises:
        UserError: a weight or a shard is missing, has another shape, or is one that a Llama has no place for.
    """
    from transformers import AutoModelForCausalLM

    with one_line(source, "its weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.place, config=config, dtype=torch.float32, output_loading_info=True, **source.where()
        )
        model, told = loaded
    for key, what in (
        ("missing_keys", "it lacks the weights"),
        ("mismatched_keys", "of another shape than its configuration says are"),
        ("unexpected_keys", "a Llama has no place for its weights"),
    ):
        names = sorted(name if isinstance(name, str) else name[0] for name in told.get(key, ()))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"import {source.text}: {what} {', '.join(names[:3])}{more}")
    return model.eval()


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer, and how the source's own text begins and ends.

    Attributes:
        ours: As for data: no truncation, padding or dropout.
        special: transformers' names of special tokens, as `bos_token`, to their text.
        begins: What it puts before a text, as the text of tokens.
        chat_template: Of its conversations, if it has one.
    """

    ours: Tokenizer
    special: dict[str, str]
    begins: str
    chat_template: str | None


def read_tokenizer(source: Source, file: str | None) -> SourceTokenizer:
    """The source's tokenizer, or that of a `tokenizer.json`.

    Raises:
        UserError: it has no fast tokenizer, or none with an end-of-text token.
    """
    if file is not None:
        return SourceTokenizer(load_tokenizer(file), {}, "", None)
    from transformers import AutoTokenizer

    with one_line(source, "its tokenizer (--tokenizer FILE names a tokenizer.json instead)"):
        theirs = AutoTokenizer.from_pretrained(source.place, **source.where())
    if not theirs.is_fast:
        raise UserError(
            f"import {source.text}: {type(theirs).__name__} is no fast tokenizer, and lrtrain reads those of the "
            "tokenizers library: --tokenizer FILE names a tokenizer.json"
        )
    content = json.loads(theirs.backend_tokenizer.to_str())
    template = content.get("post_processor") or {}
    if template.get("type") == "TemplateProcessing" and not template["special_tokens"]:
        content["post_processor"] = None  # transformers' own, which puts nothing around a text
    ours = Tokenizer.from_str(json.dumps(content))
    ours.no_truncation()
    ours.no_padding()
    if isinstance(ours.model, models.BPE):
        ours.model.dropout = None
    end_of_text(ours, f"of {source.text}")
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: str(token) for name in names if (token := getattr(theirs, name, None)) is not None}
    before = ours.encode("").ids
    chat = theirs.chat_template if isinstance(theirs.chat_template, str) else None
    return SourceTokenizer(ours, special, ours.decode(before, skip_special_tokens=False), chat)


def card(source: Source) -> str | None:
    """The text of its model card; empty where it has none, None where a hub that may have one cannot be asked."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _file(source, CARD).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return None if isinstance(error.__cause__, LocalEntryNotFoundError) else ""


def _file(source: Source, name: str) -> Path:
    """A file of the source, from the hub if need be. Raises OSError where there is none."""
    from transformers.utils import cached_file

    return Path(source.place, name) if source.local else Path(str(cached_file(source.place, name)))
