"""Which format a file has by the end of its name: the built-in ones, and those of one's own by class path."""

import importlib
from collections.abc import Sequence

from lrtrain.data.dictionary_format import Dictionary
from lrtrain.data.formats import Code, DocumentFormat, JsonLines, Parquet, Text
from lrtrain.data.html_format import Html
from lrtrain.runtime.errors import UserError

BUILT_IN: tuple[type[DocumentFormat], ...] = (Text, Code, JsonLines, Parquet, Html, Dictionary)


def formats_by_suffix(class_paths: Sequence[str] = ()) -> dict[str, type[DocumentFormat]]:
    """Suffix -> format: the built-in ones, and before them those of class paths such as `my_format.Csv`.

    Raises:
        UserError: a class path names no format.
    """
    return {suffix: kind for kind in [*BUILT_IN, *formats_named(class_paths)] for suffix in kind.suffixes}


def formats_named(class_paths: Sequence[str]) -> list[type[DocumentFormat]]:
    """The classes of these class paths. Raises UserError for one that names no format."""
    return [*map(_imported, class_paths)]


def _imported(class_path: str) -> type[DocumentFormat]:
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"formats: {class_path} cannot be imported ({error}): give a class path such as my_format.Csv, of a file "
            "in this folder or beside the YAML"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, DocumentFormat) and hasattr(kind, "suffixes")):
        raise UserError(f"formats: {class_path} is no lrtrain.data.DocumentFormat with suffixes: derive it from that")
    return kind
