"""The checkpoint that a configuration is to begin from: there, whole, and of the same architecture."""

from collections.abc import Iterator, Mapping
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.studies.doctor.finding import Finding, failed, passed


def check_first_weights(asked: str, decoder: Mapping[str, Any]) -> Iterator[Finding]:
    """`init_from`, a path on this disk, against `model.decoder`."""
    from lrtrain.config.init_from import find_origin, warm_start

    try:
        origin, path = find_origin(asked)
        warm_start(origin, path, dict(decoder))
    except UserError as error:
        yield failed("init_from", str(error), "name a checkpoint that fits, or the recipe of its run")
    else:
        yield passed("init_from", f"{origin.where}, step {origin.step}, fits model.decoder")
