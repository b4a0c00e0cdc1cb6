"""Groups of runs that count as repetitions of one another, and whether and in what they differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.runs import TrackedRun

PLACES = ("name", "runs", "ckpt_path", "manifest.", "trainer.logger")
"""What says where a run lies and not how it was trained. The data are compared by `check_data`."""

POINT_TAG = "lrtrain.point"
"""What `lrtrain sweep` varied in a run."""

DATA = {
    "tokenizer": "manifest.tokenizer_sha256",
    "training data": "manifest.train.",
    "held-out data": "manifest.val.",
}


@dataclass(frozen=True)
class Group:
    """Runs that are repetitions of one another (other seeds), under the label that tables and figures show."""

    label: str
    runs: list[TrackedRun]


def group_runs(runs: Iterable[TrackedRun], labels: Mapping[str, Sequence[str]]) -> list[Group]:
    """Groups runs by label: first those in `labels` (name: its labels), in its order.

    Then other names, one group for each point of their study, or for each name.
    """
    members: dict[str, dict[str, TrackedRun]] = {label: {} for of_name in labels.values() for label in of_name}
    for run in runs:
        for label in labels.get(run.name, (run.tags.get(POINT_TAG, run.name),)):
            members.setdefault(label, {})[run.id] = run
    return [Group(label, list(of_label.values())) for label, of_label in members.items()]


def ranked(groups: Sequence[Group], metric: str) -> list[Group]:
    """The groups by their mean last value, lowest first and diverged ones last.

    Raises:
        UserError: a run has no such metric.
    """
    means = {group.label: np.mean([run.series(metric).value[-1] for run in group.runs]) for group in groups}
    return sorted(groups, key=lambda group: np.nan_to_num(means[group.label], nan=np.inf))


def check_data(groups: Sequence[Group], anyway: bool = False) -> list[str]:
    """What to be warned of: runs of another tokenizer or other data. Raises UserError for them if not `anyway`."""
    first, *others = [run for group in groups for run in group.runs]
    for what, key in DATA.items():
        expected = _under(key, first)
        for run in others:
            found = _under(key, run)
            if found != expected:
                has = [_described(what, manifest) for manifest in (found, expected)]
                difference = f"run {run.run_name} has {has[0]}, {first.run_name} has {has[1]}"
                if not anyway:
                    raise UserError(f"{difference}: their losses do not compare; leave one out, or give --anyway")
                return [f"their losses do not compare: {difference}"]
    return []


def differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Configuration keys whose values are not the same in all groups, with the value of each group.

    Keys are the command line's, which needs no `init_args`. Several values inside a group (seeds) are joined by
    commas; a key that a group does not have is `–`.
    """
    keys = sorted({key for group in groups for run in group.runs for key in run.params})
    rows = {}
    for key in keys:
        if not key.startswith(PLACES):
            values = [
                ", ".join(sorted({run.params.get(key, "–") for run in group.runs}, key=_natural)) for group in groups
            ]
            if len(set(values)) > 1:
                rows[key.replace(".init_args.", ".")] = values
    return rows


def _under(prefix: str, run: TrackedRun) -> dict[str, str]:
    return {key: value for key, value in run.params.items() if key.startswith(prefix) and not key.endswith(".file")}


def _described(what: str, found: Mapping[str, str]) -> str:
    if not found:
        return f"no record of its {what}"
    if "manifest.tokenizer_sha256" in found:
        return f"the {what} {found['manifest.tokenizer_sha256'][:8]}"
    tokens = next((value for key, value in found.items() if key.endswith(".tokens") and ".chunks." not in key), "?")
    digest = next((value[:8] for key, value in sorted(found.items()) if key.endswith(".sha256")), "?")
    return f"the {what} {digest} ({tokens} tokens)"


def _natural(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
