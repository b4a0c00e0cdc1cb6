"""Numbers as users write them, and as people read them."""

import math
import re

from lrtrain.runtime.errors import UserError

MEMORY = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MEMORY |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def read_memory(flag: str, text: str) -> float:
    """Bytes of `80GB` (10⁹) or `80GiB` (2³⁰).

    Raises:
        UserError: no such amount.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?b)", text.strip(), re.IGNORECASE)
    value = _positive(match[1]) if match else None
    if match is None or value is None:
        raise UserError(f"{flag} {text}: give an amount of memory with its unit, as in 80GB or 80GiB")
    return value * MEMORY[match[2].upper()]


def read_amount(flag: str, text: str, what: str) -> float:
    """`2e9`, `2000000000` or `2B`.

    Raises:
        UserError: no such number, or not above zero.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[+]?[0-9]+)?)\s*([kmbgt]?)", text.strip().replace("_", ""), re.IGNORECASE)
    value = _positive(match[1]) if match else None
    if match is None or value is None:
        raise UserError(f"{flag} {text}: give {what}, a number above 0 as in 2e9 or 2B")
    return value * SCALES[match[2].upper()]


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def short(value: float) -> str:
    """Three figures and a power of a thousand: 93.6M."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}" if value < 1e18 else f"{value:.3g}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """The largest unit that is at least one of: days, hours, minutes, seconds."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"
