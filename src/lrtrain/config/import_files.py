"""What an import writes: a checkpoint, its recipe and its tokenizer, all of them or none."""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor

from lrtrain.checkpoint.checkpoint_io import check_architecture
from lrtrain.checkpoint.huggingface.imported import Imported
from lrtrain.checkpoint.single_file import write_whole
from lrtrain.config.import_recipe import recipe
from lrtrain.config.trained_model import build_decoder
from lrtrain.nn import Decoder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import alone, write_atomically
from lrtrain.runtime.stores import is_remote

SUFFIX = ".ckpt"


@dataclass(frozen=True)
class Target:
    """The files that an import writes."""

    checkpoint: Path
    recipe: Path
    tokenizer: Path

    def files(self) -> tuple[Path, Path, Path]:
        return self.checkpoint, self.recipe, self.tokenizer

    def check(self, out: str) -> None:
        """Raises UserError where one of them is there; `out` is what was asked for."""
        for file in self.files():
            if file.exists():
                raise UserError(f"--out {out}: {file} exists already; name a new file")


def find_target(out: str) -> Target:
    """The files to write for `--out`, by their absolute paths. Raises UserError where one is there."""
    if is_remote(out):
        raise UserError(f"--out {out}: name a file of this machine; it can be copied to a store")
    path = Path(out).expanduser().resolve()
    if path.suffix != SUFFIX:
        raise UserError(f"--out {out}: name a file that ends in {SUFFIX}; the recipe and the tokenizer go beside it")
    target = Target(path, path.with_suffix(".yaml"), path.with_suffix(".tokenizer.json"))
    target.check(out)
    return target


def write_import(
    decoder: Decoder, made: dict[str, Any], tokenizer: Tokenizer, origin: Imported, target: Target
) -> None:
    """Writes the three files, all of them or none.

    Args:
        decoder: Whose weights they hold.
        made: `model.decoder` that makes it.
        tokenizer: Of its texts.
        origin: What the checkpoint is to remember.
        target: Their names.

    Raises:
        UserError: one is there by now, or another process writes them; the disk is full or refuses.
    """
    state: dict[str, Tensor] = {f"decoder.{name}": weight.detach() for name, weight in decoder.state_dict().items()}
    with torch.device("meta"):
        again = torch.nn.ModuleDict({"decoder": build_decoder(made)})
    check_architecture({"state_dict": state}, again, target.checkpoint)
    name, tokens = target.checkpoint.stem, target.tokenizer
    texts = [recipe(name, origin.source, made, origin.context, tokens, begin) for begin in (None, target.checkpoint)]
    yaml.safe_load(texts[0])
    own = {
        "version": importlib.metadata.version("lrtrain"),
        "config": texts[0],
        "tokenizer": tokenizer.to_str(),
        "rng": [],
        "validation_due": False,
        "imported": origin.record(),
    }
    checkpoint = {
        "state_dict": state,
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        "callbacks": {},
        "lrtrain": own,
    }
    with _alone(target), _all_or_none(target):
        write_whole(checkpoint, target.checkpoint)
        write_atomically(tokens, tokenizer.to_str(pretty=True).encode())
        write_atomically(target.recipe, texts[1].encode())


@contextmanager
def _alone(target: Target) -> Iterator[None]:
    """Keeps out another import to the same files, and refuses those that one has written meanwhile."""
    checkpoint = target.checkpoint
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        busy = f"--out {checkpoint}: another process writes it just now; name another file"
        with alone(checkpoint.with_name(f".{checkpoint.name}.lock"), busy):
            target.check(str(checkpoint))
            yield
    except OSError as error:
        raise UserError(
            f"cannot write {checkpoint}: {error.strerror or error}; make room or name another place"
        ) from error


@contextmanager
def _all_or_none(target: Target) -> Iterator[None]:
    """Removes what was written where the rest could not be."""
    try:
        yield
    except BaseException as error:
        for file in target.files():
            with suppress(OSError):
                file.unlink(missing_ok=True)
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise
