"""The callbacks that projections train with."""

import pkgutil

import lightning as L

from lrtrain.nn import Decoder
from lrtrain.runtime.errors import UserError


def training_callbacks(decoder: Decoder) -> list[type[L.Callback]]:
    """The callbacks that a decoder's projections train with (`Projection.training_callback`), each once.

    Raises:
        UserError: one that is named does not exist.
    """
    found: dict[type[L.Callback], None] = {}
    for module in decoder.modules():
        if path := getattr(module, "training_callback", ""):
            try:
                found[pkgutil.resolve_name(path)] = None
            except (ValueError, ImportError, AttributeError) as error:
                raise UserError(f"{type(module).__name__}.training_callback is {path!r}: {error}") from error
    return list(found)
