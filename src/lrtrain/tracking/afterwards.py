"""Metrics that are measured after a run has ended, as those of a checkpoint are: into its record, and to its MLflow."""

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.delivery import Delivery, load_state
from lrtrain.tracking.destination import reason, redact, resolve_uri
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.spool import SPOOL_NAME, Spool, SpoolBusyError, is_copy


def record_afterwards(
    run_dir: Path, step: int, metrics: Mapping[str, float], artifact: str, text: str
) -> tuple[list[str], list[str]]:
    """Records `metrics` at a step of a run that has ended, and `text` as an artifact; the run's status stays.

    What is recorded at other steps stays: MLflow's latest value is that of the highest step, whichever came last.

    Returns:
        Lines on what was recorded, and warnings: why nothing was, that MLflow has not taken it, or that another value
        stood at the same step.

    Raises:
        UserError: the record is damaged, or cannot be written.
    """
    if not (run_dir / SPOOL_NAME).is_file():
        return [], [f"not recorded: {run_dir} has no {SPOOL_NAME}, so no run is known that these figures are of"]
    if is_copy(run_dir):
        return [], [f"not recorded: {run_dir} is a copy, and its record is that of the original run"]
    try:
        spool = Spool(run_dir)
    except SpoolBusyError:
        return [], [f"not recorded: {run_dir} is still training; give the same command again when it has ended"]
    with closing(spool):
        warnings = _replaced(run_dir, step, metrics)
        # A moment after the last record, and not now: which of several runs is the newest is told by that.
        moment = spool.last_time + 1
        spool.append({"step": step, "metrics": dict(metrics)}, moment)
        spool.append({"artifact": artifact, "text": text}, moment)
        lines = [f"{len(metrics)} metrics at step {step} of {run_dir}"]
        state = load_state(run_dir)
        if state is None:
            return lines, [*warnings, f"MLflow does not have this run: `lrtrain sync {run_dir}` sends it"]
        try:
            delivery = Delivery(run_dir, tracked_at(run_dir))
            delivery.send()
            lines.append(f"MLflow at {redact(delivery.uri)}")
        except Exception as error:  # MLflow, its database and the network raise what they like
            why = str(error) if isinstance(error, UserError) else reason(error, state.tracking_uri)
            warnings.append(
                f"MLflow at {state.tracking_uri} takes no records ({why}): `lrtrain sync {run_dir}` sends them"
            )
    return lines, warnings


def tracked_at(run_dir: Path) -> str:
    """The URI that the run was tracked with; its password, which is not kept, comes from MLFLOW_TRACKING_URI."""
    state = load_state(run_dir)
    if state is None:
        return resolve_uri(None, run_dir.absolute().parent.parent)
    environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    if redact(environment) == state.tracking_uri:
        return environment
    if ":***@" in state.tracking_uri:
        raise UserError(f"{run_dir} needs the password of {state.tracking_uri}: give --tracking-uri with it")
    return state.tracking_uri


def _replaced(run_dir: Path, step: int, metrics: Mapping[str, float]) -> list[str]:
    """Which values stood at the same step and are others now."""
    run, found = recorded(run_dir), []
    for name, value in metrics.items():
        series = run.metrics.get(name) if run is not None else None
        before = [] if series is None else series.value[series.step == step].tolist()
        if before and abs(before[-1] - value) > 1e-9 * max(1.0, abs(value)):
            found.append(f"{name} at step {step} was {before[-1]:.4f} and is {value:.4f} now: the later one counts")
    return found
