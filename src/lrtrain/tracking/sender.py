"""The background thread that keeps MLflow up to date while a run goes on, and never disturbs it."""

import logging
import threading

from lrtrain.tracking.delivery import Delivery
from lrtrain.tracking.destination import reason

INTERVAL = 2.0  # seconds between passes
LONGEST_PAUSE = 60.0  # seconds between attempts at a server that stays down

log = logging.getLogger("lrtrain.tracking")


class Sender:
    """Sends what the spool gains, in a daemon thread, from construction until `finish`.

    A pass that fails doubles the pause before the next one (2 s to 60 s). The first failure and the first success after
    it are one warning line each; nothing else is said and nothing is raised.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self._failures = 0
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._thread.start()

    def finish(self, patience: float) -> None:
        """Make one last pass over everything appended before this call; wait for it at most `patience` seconds.

        Says in one warning line what still waits after that.
        """
        self._finishing.set()
        self._thread.join(patience)
        points = self.delivery.waiting()
        if points or self._failures or self._thread.is_alive():
            folder = self.delivery.run_dir
            what = f"{points} points" if points else "some records"
            log.warning(f"{what} of {folder} wait for MLflow: `lrtrain sync {folder}` sends them")

    def _run(self) -> None:
        while True:
            last = self._finishing.is_set()  # asked before the pass: all that was appended until then is in it
            self._pass()
            if last:
                return
            self._finishing.wait(min(INTERVAL * 2**self._failures, LONGEST_PAUSE))

    def _pass(self) -> None:
        where = f"MLflow at {self.delivery.state.tracking_uri}"
        try:
            sent = self.delivery.send()
        except Exception as error:  # whatever it is, training goes on and the points are safe in the spool
            if self._failures == 0:
                why = reason(error, self.delivery.uri)
                log.warning(f"{where} takes no records ({why}): they wait, training goes on")
            self._failures += 1
        else:
            if self._failures:
                log.warning(f"{where} takes records again: {sent} points that waited are sent")
            self._failures = 0
