"""Copies a run's checkpoints and record into a store, in a thread, while training goes on."""

import json
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from lrtrain.checkpoint.directory import FOLDER, newest_whole, step_of
from lrtrain.checkpoint.remote_runs import ASIDE, METRICS, RECORD, checkpoint_name, steps_among
from lrtrain.checkpoint.shard_folder import META
from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.liveness import beat

SESSION = "session.json"
"""Which session of the run copies it: the newest that began."""


class Uploads:
    """The copy of one run in a store: the newest checkpoint that is offered goes there, one at a time.

    What a store does not take is said in a line and tried again with the next checkpoint; `finish` waits for the last.
    The thread is no daemon and ends when nothing is left to do.

    Args:
        run_dir: The run.
        url: Its copy.
        keep: How many checkpoints of the copy stay, -1 for all; one goes only after its successor is whole there.
        then: Called in the thread after each checkpoint that is there.
    """

    def __init__(self, run_dir: Path, url: str, keep: int, then: Callable[[], None]) -> None:
        self.url = url
        self._run_dir, self._keep, self._then = run_dir, keep, then
        self._lock = threading.Lock()
        self._waiting: tuple[int, Path] | None = None
        self._current: tuple[int, Path] | None = None
        self._failed: UserError | None = None
        self._session: str | None = None
        self._thread: threading.Thread | None = None

    @property
    def needed(self) -> set[Path]:
        """The local checkpoints that are yet to be copied: they must stay."""
        with self._lock:
            return {entry[1] for entry in (self._waiting, self._current) if entry is not None}

    def begin(self, step: int) -> None:
        """Takes the copy over from earlier sessions, and sets checkpoints ahead of the step, where this one goes on,
        aside there."""
        self._session = json.dumps({"session": uuid.uuid4().hex, "host": socket.gethostname()})
        stores.write(stores.joined(self.url, SESSION), self._session.encode())
        stores.abort_uploads(self.url)
        for ahead in steps_among(stores.stored(self.url)):
            if ahead > step:
                stores.write(stores.joined(self.url, checkpoint_name(ahead) + ASIDE), b"")
                print(f"{self.url}/{checkpoint_name(ahead)} is ahead of step {step}: set aside there", flush=True)

    def offer(self, step: int, path: Path) -> None:
        """Hands over a checkpoint that is whole; an earlier one that still waits is left out."""
        with self._lock:
            self._waiting = step, path
            if self._current is not None:
                return
            self._current, self._waiting = self._waiting, None
        if self._thread is not None:
            self._thread.join()  # it is past its last look at what waits
        self._thread = threading.Thread(target=self._work, name="checkpoint-uploads")
        self._thread.start()

    def finish(self) -> None:
        """Waits until the newest whole checkpoint of this disk is there, and brings what the record holds now.

        Raises:
            UserError: the store does not take it; says where the local one is.
            TemporaryError: it does not answer.
        """
        trying = self._thread is not None and self._thread.is_alive()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1)
            beat()  # a liveness probe is not to end a run that waits for its last upload
        newest, _ = newest_whole(self._run_dir / FOLDER)
        try:
            if self._failed is not None and trying:
                raise self._failed  # it has just been waited for
            if newest is not None and step_of(newest) not in steps_among(stores.stored(self.url)):
                self._send(step_of(newest), newest)  # perhaps of an earlier session, whose end did not get there
            self._send_record()
        except UserError as error:
            line = f"{self.url} lacks the end of this run: {error}; it is in {newest or self._run_dir}"
            raise type(error)(line) from error

    def _work(self) -> None:
        while self._current is not None:
            failed = None
            try:
                self._send(*self._current)
            except Exception as error:  # whatever it is, training goes on and the checkpoint is on the disk
                failed = error if isinstance(error, UserError) else UserError(f"{type(error).__name__}: {error}")
                line = f"{self._current[1]} is not copied to {self.url}: {failed}; training goes on"
                print(line, file=sys.stderr, flush=True)
            with self._lock:
                sent = self._current
                self._failed, self._current, self._waiting = failed, self._waiting, None
                if failed is not None and self._current is None:
                    self._waiting = sent  # it stays on this disk until a later one is there
            if failed is None:
                self._then()

    def _send(self, step: int, path: Path) -> None:
        self._send_record()  # first: who finds the checkpoint finds what led to it
        name = checkpoint_name(step)
        there = {*stores.stored(self.url)}
        if path.is_dir() == (name in there):
            self._remove(name, there)  # of the other kind
        if path.is_dir():
            stores.upload_folder(path, stores.joined(self.url, name), META)
        else:
            stores.upload(path, stores.joined(self.url, name))
        if name + ASIDE in there:
            stores.delete(stores.joined(self.url, name + ASIDE))
        there = {*there, name} - {name + ASIDE}
        for old in steps_among(there)[self._keep :] if self._keep != -1 else ():
            self._remove(checkpoint_name(old), there)

    def _remove(self, name: str, there: set[str]) -> None:
        """Removes a checkpoint, the marker of a folder before the rest."""
        if name in there:
            stores.delete(stores.joined(self.url, name))
        if any(other.startswith(f"{name}/") for other in there):
            stores.clear_folder(stores.joined(self.url, name), META)

    def _send_record(self) -> None:
        if self._session is not None:
            held = stores.read(stores.joined(self.url, SESSION)).decode()
            if held != self._session:
                host = json.loads(held)["host"]
                raise UserError(f"another process, on {host}, goes on with this run and has taken its copy over")
        for name in RECORD:
            file = self._run_dir / name
            if file.is_file():
                content = file.read_bytes()
                if name == METRICS:  # a line may be in the making
                    content = content[: content.rfind(b"\n") + 1]
                stores.write(stores.joined(self.url, name), content)
