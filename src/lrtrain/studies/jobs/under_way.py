"""How far the runs of a study are, in a line: what is done, how long the rest may take, and what runs now."""

import threading
import time
from collections.abc import Callable

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.units import duration
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.tracking.recorded import recorded

MAX_STEPS = "trainer.max_steps"


class UnderWay:
    """Counts what a study wants and what of it is done; any thread may tell it.

    Args:
        what: Is counted, in the plural, as `trials`.
        total: How many of them.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self._done = self._kept = self._ended = 0
        self._running: dict[str, Job] = {}
        self._begun = time.monotonic()
        self._trained = False
        self._mutex = threading.Lock()

    def run(self, job: Job, train: Callable[[], Outcome]) -> Outcome:
        """What `train` returns; while it runs, and when it has ended, however, the line tells of the job."""
        with self._mutex:
            self._running[job.name] = job
        try:
            outcome = train()
            self._trained |= not outcome.kept
        finally:
            with self._mutex:
                self._running.pop(job.name)
                self._ended += 1
        return outcome

    def done(self, number: int) -> None:
        """So many are done. What an earlier call had trained says nothing of the time that is left."""
        with self._mutex:
            self._done = number
            if not self._trained:
                self._kept, self._begun = number, time.monotonic()

    def line(self) -> str:
        """`2 of 6 variants (33 %), 7 runs, about 25.0 minutes left; spectron-s0 at step 120 of 400`."""
        with self._mutex:
            done, ended, running = self._done, self._ended, list(self._running.values())
        if not running:
            return ""
        share = f" ({done / self.total:.0%})" if self.total else ""
        parts = [f"{done} of {self.total} {self.what}{share}", f"{ended} run{'' if ended == 1 else 's'} ended"]
        if self._kept < done < self.total:
            left = (time.monotonic() - self._begun) / (done - self._kept) * (self.total - done)
            parts.append(f"about {duration(left)} left")
        return f"{', '.join(parts)}; now {', '.join(map(_place, running))}"


def _place(job: Job) -> str:
    """`spectron-s0 at step 120 of 400`, as far as its record tells."""
    newest, of = job.newest_run(), f" of {job.settings[MAX_STEPS]}" if MAX_STEPS in job.settings else ""
    try:
        run = recorded(newest) if newest is not None else None
    except UserError:  # damaged: the run itself will say so
        run = None
    steps = [int(series.step[-1]) for series in run.metrics.values()] if run is not None else []
    return f"{job.name} at step {max(steps)}{of}" if steps else job.name
