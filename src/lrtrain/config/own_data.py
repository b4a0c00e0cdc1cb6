"""A DataModule of the user's own under `data`: its keys, and the sizes that others ask of it."""

from typing import Any

from jsonargparse import ArgumentParser

from lrtrain.config.settings import Settings, with_files
from lrtrain.runtime.errors import UserError


def add_own_data(parser: ArgumentParser, argv: list[str]) -> bool:
    """Lets `data` be any LightningDataModule where files or flags name its class; returns whether they do.

    Where nobody does, the keys of `data` are the arguments of `TokenDataModule`.
    """
    stated = [setting.value for setting in Settings(with_files(argv)) if setting.path in ("data", "data.class_path")]
    if not any(isinstance(value, str) and not value.endswith((".yaml", ".yml")) for value in stated):
        return False
    from lightning import LightningDataModule

    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    # Of the recipe below the file that names the class.
    parser.set_defaults({"data": {"class_path": "lrtrain.data.TokenDataModule"}})
    return True


def data_sizes(data: Any) -> tuple[int, int]:
    """Tokens of a sequence and sequences of a batch, of a configuration's `data`, whatever its class.

    Raises:
        UserError: an own class has no such arguments.
    """
    stated = data.get("init_args", data)
    for name, meaning in (("block_size", "tokens of a sequence"), ("batch_size", "sequences of a batch")):
        if not isinstance(stated.get(name), int):
            raise UserError(
                f"data.init_args.{name}: FLOPs and memory are counted by it, and {data['class_path']} has no such "
                f"number; give the class that argument ({meaning})"
            )
    return stated["block_size"], stated["batch_size"]
