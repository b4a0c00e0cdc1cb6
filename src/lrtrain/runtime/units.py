"""Numbers as users write them, and as people read them."""

import math
import re
from collections.abc import Mapping

from lrtrain.runtime.errors import UserError

MEMORY = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MEMORY |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
PREFIXES = {1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}


def read_memory(flag: str, text: str) -> float:
    """Bytes of `80GB` (10⁹) or `80GiB` (2³⁰).

    Raises:
        UserError: no such amount.
    """
    return _read(flag, text, MEMORY, "an amount of memory with its unit, as in 80GB or 80GiB")


def read_amount(flag: str, text: str, what: str) -> float:
    """`2e9`, `2000000000` or `2B`.

    Raises:
        UserError: no such number, or not above zero.
    """
    return _read(flag, text.replace("_", ""), SCALES, f"{what}, a number above 0 as in 2e9 or 2B")


def short(value: float) -> str:
    """Formats three digits and a prefix: 819200 is 819k, 2.2e18 is 2.2E."""
    for size, prefix in PREFIXES.items():
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Formats seconds in the largest of days, hours, minutes, seconds that is at least one."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"


def _read(flag: str, text: str, units: Mapping[str, int], wanted: str) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(e\+?\d+)?\s*([a-z]*)", text.strip(), re.IGNORECASE)
    if match is not None and match[3].upper() in units:
        value = float(match[1] + (match[2] or "")) * units[match[3].upper()]
        if 0 < value < math.inf:
            return value
    raise UserError(f"{flag} {text}: give {wanted}")
