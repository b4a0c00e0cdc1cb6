"""What a check found: pass, warn or fail, and what to do; and a check that ends, whatever it meets."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, how it stands, what was found, and what to do about it."""

    check: str
    status: Status
    found: str
    advice: str = ""


Check = Callable[[], Iterable[Finding]]


def passed(check: str, found: str) -> Finding:
    return Finding(check, "pass", found)


def warned(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warn", found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "fail", found, advice)


def carried_out(name: str, check: Check, seconds: float) -> list[Finding]:
    """What a check finds; a warning where it breaks, or is not done in time and goes on in a thread of its own."""
    found: list[Finding] = []
    broken: list[BaseException] = []

    def run() -> None:
        try:
            found.extend(check())
        except BaseException as error:  # a check that breaks says so, and ends nothing
            broken.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [*found, warned(name, f"no answer within {seconds:g} s", "look at it by hand: a job may hang there")]
    for error in broken:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found.append(warned(name, f"this check broke: {text}", "look at it by hand"))
    return list(found)
