"""What a plan says that a run needs, against the memory that there is."""

from collections.abc import Iterator

from lrtrain.runtime.units import short
from lrtrain.studies.doctor.finding import Finding, failed, passed, warned

TIGHT = 0.9
"""Share of a device's memory from which on fragments and libraries may not fit."""


def check_memory(needed: float, each: float, device: str) -> Iterator[Finding]:
    """The estimated peak of one process against its share of memory, both in bytes."""
    found = f"a process takes about {short(needed)}B of {short(each)}B ({device})"
    advice = "lower data.batch_size, set model.activation_checkpointing, or shard over more processes; see lrtrain plan"
    if needed > each:
        yield failed("memory", found, advice)
    elif needed > TIGHT * each:
        yield warned("memory", f"{found}: little is left for fragments and libraries", advice)
    else:
        yield passed("memory", found)
