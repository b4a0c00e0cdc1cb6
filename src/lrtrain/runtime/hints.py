"""What to say of a name that does not exist: those that do, the most alike first."""

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str], lead: str = "there are") -> str:
    """Returns `did you mean width?` for a likely typo, else `there are depth, heads, width`."""
    names = list(known)
    likely = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {likely[0]}?" if likely else f"{lead} {', '.join(names[:16]) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `there are val/loss, train/loss`: the three most alike of many names, or else the first eight."""
    names = sorted(known)
    likely = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    return f"there are {', '.join(likely or names[:8]) or 'none'}"
