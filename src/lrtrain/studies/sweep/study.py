"""A study in Optuna's storage, at which any number of processes and machines work.

Every point of a study is a trial that waits until a worker claims it: a grid's with its values, any other without, to
be sampled when claimed. So no point is done twice, and none is left out. A trial whose worker is gone is marked failed,
and Optuna lets a copy of it wait, with the same point and values.
"""

import contextlib
import os
import random
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lrtrain.runtime.errors import UserError
from lrtrain.studies.sweep.space import Space
from lrtrain.tracking.destination import redact, sqlite_path
from lrtrain.tracking.names import difference, flatten

HEARTBEAT = 30  # seconds between two signs of life of a running trial
SILENCE = 180  # seconds without one after which its worker counts as gone
SPACE, POINT, VALUES, WORKER, DROPPED = "space", "point", "values", "worker", "dropped"
STATUS, REASON = "status", "reason"
"""Keys of the study's attributes, and of a trial's."""


class Study:
    """The trials of a search space under a name.

    Args:
        space: what is searched.
        name: of the study.
        storage: a database URL.

    Attributes:
        optuna: the study in the storage.

    Raises:
        UserError: the storage cannot be opened, or has a study of this name with another space.
    """

    def __init__(self, space: Space, name: str, storage: str) -> None:
        self.space, self.name, self.where = space, name, redact(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        database = sqlite_path(storage)
        # SQLite takes no lock on a row that is read to be changed: two workers could claim one trial.
        self._lock: AbstractContextManager[Any] = nullcontext()
        with self._reachable():
            if database is None:
                print(f"opening the storage {self.where}", file=sys.stderr)  # a server that is not there takes minutes
            else:
                database.parent.mkdir(parents=True, exist_ok=True)
                self._lock = FileLock(f"{database}.lock")
            with self._lock:
                self._retry = RetryHeartbeatStaleTrialCallback()
                self._storage = RDBStorage(
                    storage,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=SILENCE,
                    heartbeat_stale_trial_callback=self._retry,
                    engine_kwargs={"connect_args": {"timeout": 60}} if database is not None else None,
                )
                self.optuna = optuna.create_study(
                    storage=self._storage,
                    sampler=optuna.samplers.RandomSampler(),
                    study_name=name,
                    direction="minimize" if space.mode == "min" else "maximize",
                    load_if_exists=True,
                )
                self._begin()

    def claim(self) -> tuple[Trial, dict[str, Any]] | None:
        """The next trial that waits, now this process's, and its values by key; None if none waits."""
        with self._reachable():
            self._release()
            while True:
                with self._lock:
                    if not self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                        return None
                    trial = self.optuna.ask()
                    if POINT in trial.user_attrs:
                        trial.set_user_attr(WORKER, [socket.gethostname(), os.getpid()])
                        self.beat([trial])
                if not _counts(trial) or self._taken(trial):
                    trial.set_user_attr(DROPPED, True)
                    self.optuna.tell(trial, state=TrialState.FAIL)
                    continue
                self.optuna.sampler = self._sampler(trial.user_attrs[POINT])
                values = {parameter.key: parameter.suggest(trial) for parameter in self.space.parameters}
                trial.set_user_attr(VALUES, values)
                return trial, values

    def beat(self, trials: Sequence[Trial]) -> None:
        """Tells the other workers that these trials are being worked at."""
        with self._reachable():
            for trial in trials:
                self._storage.record_heartbeat(trial._trial_id)

    def tell(self, trial: Trial, value: float | None, status: str, reason: str, **attributes: Any) -> None:
        """Ends a trial with its value, None where it failed; `reason` is why it did, or diverged."""
        # One that others took for abandoned has ended already.
        with self._reachable(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for key, item in {STATUS: status, REASON: reason, **attributes}.items():
                trial.set_user_attr(key, item)
            state = TrialState.COMPLETE if value is not None else TrialState.FAIL
            self.optuna.tell(trial, value, state)

    def give_back(self, trial: Trial) -> None:
        """Lets the point of a trial wait for a worker again; a trial that has not ended ends as failed."""
        with self._reachable():
            frozen = self.optuna.get_trials()[trial.number]
            if frozen.state.is_finished():
                self._retry(self.optuna, frozen)
            else:
                self._fail(frozen)

    def trials(self) -> list[FrozenTrial]:
        """The newest trial of each point, in the points' order."""
        with self._reachable():
            newest = {t.user_attrs[POINT]: t for t in self.optuna.get_trials(deepcopy=False) if _counts(t)}
        return [newest[point] for point in sorted(newest)]

    def finished(self) -> list[FrozenTrial]:
        """The trials that finished, the best first."""
        sign = 1 if self.space.mode == "min" else -1
        told = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        finished = [trial for trial in told if trial.user_attrs[STATUS] == "finished"]
        return sorted(finished, key=lambda trial: sign * (trial.value or 0.0))

    def best(self) -> FrozenTrial | None:
        """The best of the trials that finished."""
        return next(iter(self.finished()), None)

    def _begin(self) -> None:
        """Notes the space, or compares it with the one that the study began with, and adds what trials it lacks."""
        mine, known = self.space.content(), self.optuna.user_attrs.get(SPACE)
        if known is None:
            self.optuna.set_user_attr(SPACE, mine)
        elif known != mine:
            found = difference(flatten(known), flatten(mine))
            raise UserError(
                f"the study {self.name!r} in {self.where} has another space ({found}): give another --study, or the "
                "space that it began with"
            )
        points = dict(enumerate(self.space.points(), start=1))
        begun = {trial.user_attrs.get(POINT) for trial in self.optuna.get_trials(deepcopy=False)}
        for point in range(1, self.space.trials + 1):
            if point not in begun:
                values = points.get(point, {})
                fixed = {p.key: p.stored(values[p.key]) for p in self.space.parameters if p.key in values}
                self.optuna.enqueue_trial(fixed, user_attrs={POINT: point})

    def _release(self) -> None:
        """Fails the trials whose workers are gone, and lets their points wait again."""
        optuna.storages.fail_stale_trials(self.optuna)
        with self._lock:
            for trial in self.optuna.get_trials(states=(TrialState.RUNNING,)):
                host, process = trial.user_attrs.get(WORKER, (None, 0))
                if host == socket.gethostname() and not _alive(process):
                    self._fail(trial)

    def _fail(self, trial: FrozenTrial) -> None:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another worker was faster
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            self._retry(self.optuna, trial)

    def _taken(self, trial: Trial) -> bool:
        """Whether another worker has the point: two that begin a study at once may both have added it."""
        others = self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
        point = trial.user_attrs[POINT]
        return any(_counts(o) and o.user_attrs[POINT] == point and o.number < trial.number for o in others)

    def _sampler(self, point: int) -> optuna.samplers.BaseSampler:
        """The sampler of a point: its draws do not depend on who draws, or after which interruption."""
        seed = random.Random(f"{self.space.seed}/{point}").getrandbits(32)
        if self.space.sampler == "tpe":
            startup = min(10, max(1, self.space.trials // 3))
            return optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=False, seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, ImportError, OSError, optuna.exceptions.StorageInternalError) as error:
            text = str(error.__cause__ or error) or repr(error)
            raise UserError(
                f"--storage {self.where}: cannot be used ({text.splitlines()[0][:200]}): correct the URL, or start the "
                "database and give the same command to go on"
            ) from error


def _counts(trial: FrozenTrial | Trial) -> bool:
    return POINT in trial.user_attrs and DROPPED not in trial.user_attrs


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
