"""One machine at a time at a URL: an object that its holder keeps changing while it is alive."""

import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lrtrain.runtime import stores
from lrtrain.runtime.errors import TemporaryError, UserError
from lrtrain.runtime.patience import waiting_since

BEAT_SECONDS = 15.0
SILENT_BEATS = 8
"""Looks in a row, a beat apart, at which a lease has not changed: then its holder is taken for gone."""


class Lease:
    """The lease of this process at `url`, an object that only it writes. `check` raises UserError once it is lost."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._holder = {
            "host": platform.node(),
            "container": _container(),
            "process": os.getpid(),
            "holder": uuid.uuid4().hex,
        }
        self._beats = 0
        self._lost = False
        self._ended = threading.Event()
        self._keeping = threading.Thread(target=self._keep, daemon=True)

    def take(self, what: str) -> None:
        """Wait for another holder, saying once `what` that is, or take over from one that is gone."""
        seen, unchanged, told = b"", 0, False
        while not stores.create(self.url, self._content()):
            began = time.monotonic()
            try:
                found = stores.read(self.url)
            except FileNotFoundError:
                continue
            quick = time.monotonic() - began < BEAT_SECONDS  # in an outage nobody can change it
            unchanged = unchanged + 1 if found == seen and quick else 0
            seen = found
            if unchanged >= SILENT_BEATS or self._was_here(found):
                print(f"{what} was left by {_named(found)}: taking over", file=sys.stderr, flush=True)
                stores.delete(self.url)
                continue
            if not told:
                print(f"{what} by {_named(found)}: waiting for it", file=sys.stderr, flush=True)
                told = True
            time.sleep(BEAT_SECONDS)
        self._keeping.start()

    def check(self) -> None:
        """Raise UserError if another machine has taken the lease over, as when this one was suspended for minutes."""
        if not self._lost:
            with suppress(FileNotFoundError):
                self._lost = json.loads(stores.read(self.url))["holder"] != self._holder["holder"]
        if self._lost:
            raise UserError(f"{self.url} was taken over by another machine meanwhile: leave it to that one")

    def give_back(self) -> None:
        self._ended.set()
        self._keeping.join()  # a beat after the deletion would leave it behind
        with suppress(UserError, FileNotFoundError), waiting_since(float("-inf")):
            self.check()
            stores.delete(self.url)

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # One try a beat, without a word: in an outage those who read or write say it.
            with suppress(TemporaryError, FileNotFoundError), waiting_since(float("-inf")):
                try:
                    self.check()
                    self._beats += 1
                    stores.write(self.url, self._content())
                except UserError as error:
                    if not isinstance(error, TemporaryError):
                        return

    def _content(self) -> bytes:
        return json.dumps({**self._holder, "beats": self._beats}).encode()

    def _was_here(self, content: bytes) -> bool:
        """Whether the holder was a process of this machine that is no more."""
        holder = json.loads(content)
        if any(holder.get(key) != self._holder[key] for key in ("host", "container")):
            return False
        try:
            os.kill(holder["process"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@contextmanager
def leased(url: str, what: str) -> Iterator[Lease]:
    """The lease at `url` for as long as `with` lasts; `what` begins the lines, as `Preparing s3://…`."""
    lease = Lease(url)
    lease.take(what)
    try:
        yield lease
    finally:
        lease.give_back()


def _container() -> str:
    """In what the number of a process is one: a container on its machine's network has that one's name."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _named(content: bytes) -> str:
    holder = json.loads(content)
    return f"process {holder['process']} on {holder['host']}"
