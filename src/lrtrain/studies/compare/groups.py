"""Groups of runs that count as repetitions of one another, and whether and in what they differ."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.runs import TrackedRun

PLACES = ("name", "runs", "ckpt_path", "manifest.", "trainer.logger")
"""What says where a run lies and not how it was trained. The data are compared by `check_data`."""

TRAINED_BY = (
    *("model.", "data.batch_size", "data.block_size", "init_from", "trainer.accumulate_grad_batches"),
    *("trainer.callbacks", "trainer.gradient_clip", "trainer.limit_", "trainer.max_", "trainer.precision"),
)
"""Keys that repetitions of one another agree in, but for `SAME`."""

SAME = ("model.activation_checkpointing", "model.compile")

POINT_TAG = "lrtrain.point"
"""What `lrtrain sweep` varied in a run."""

DATA = {
    "tokenizer": "manifest.tokenizer_sha256",
    "training data": "manifest.train.",
    "held-out data": "manifest.val.",
}


Way = tuple[tuple[str, str], ...]
"""Keys and values of a run's training."""


@dataclass(frozen=True)
class Group:
    """Runs that are repetitions of one another (other seeds), under the label that tables and figures show."""

    label: str
    runs: list[TrackedRun]


def group_runs(runs: Iterable[TrackedRun], labels: Mapping[str, Sequence[str]]) -> list[Group]:
    """Groups runs by label: first those in `labels` (name: its labels), in its order.

    Then other names, one group for each point of their study, or for each name. Runs of a name that were trained in
    different ways are no repetitions of one another: under the name itself they are a group each, and the label says
    in what they differ.
    """
    members: dict[str, dict[str, TrackedRun]] = {label: {} for of_name in labels.values() for label in of_name}
    for run in runs:
        for label in labels.get(run.name, (run.tags.get(POINT_TAG, run.name),)):
            members.setdefault(label, {})[run.id] = run
    groups = [Group(label, list(of_label.values())) for label, of_label in members.items()]
    return [part for group in groups for part in _repetitions(group)]


def _repetitions(group: Group) -> list[Group]:
    """A group of the runs of one name, by how they were trained; any other as it is: its label is the user's own."""
    parts = _by_training(group)
    if len(parts) == 1 or any(run.name != group.label for run in group.runs):
        return [group]
    return [Group(f"{group.label} ({_told(way)})", parts[way]) for way in sorted(parts, key=_in_order)]


def _by_training(group: Group) -> dict[Way, list[TrackedRun]]:
    """The runs of a group by the values of the keys in which their training differs."""
    ways = [
        {key: value for key, value in run.params.items() if key.startswith(TRAINED_BY) and not key.startswith(SAME)}
        for run in group.runs
    ]
    values = {key: {way[key] for way in ways if key in way} for way in ways for key in way}
    keys = [key for key, of_key in values.items() if len(of_key) > 1]
    parts: dict[Way, list[TrackedRun]] = {}
    for way, run in zip(ways, group.runs, strict=True):
        parts.setdefault(tuple((key, way[key]) for key in keys if key in way), []).append(run)
    return parts


def _told(way: Way) -> str:
    """The first of the keys in which a way to train differs from others, classes before their arguments."""
    ordered = sorted(way, key=lambda pair: not pair[0].endswith(".class_path"))
    told = []
    for key, value in ordered:
        name = re.sub(r"\.(init_args|class_path)", "", key).split(".")
        told.append(f"{'.'.join(name[-2:])} {value.rpartition('.')[2] if key.endswith('.class_path') else value}")
    return ", ".join(told[:3]) + (f" and {len(told) - 3} keys more" if len(told) > 3 else "")


def _in_order(way: Way) -> list[tuple[str, tuple[float, str]]]:
    return [(key, _natural(value)) for key, value in way]


def ranked(groups: Sequence[Group], metric: str) -> list[Group]:
    """The groups by their mean last value, lowest first and diverged ones last.

    Raises:
        UserError: a run has no such metric.
    """
    means = {group.label: np.mean([run.series(metric).value[-1] for run in group.runs]) for group in groups}
    return sorted(groups, key=lambda group: np.nan_to_num(means[group.label], nan=np.inf))


def check_data(groups: Sequence[Group], anyway: bool = False) -> list[str]:
    """What to be warned of: other data, another training within a group. Raises UserError for data if not `anyway`."""
    warnings = [
        f"{group.label} averages runs that are no repetitions: {'; '.join(_told(way) for way in parts)}"
        for group in groups
        if len(parts := _by_training(group)) > 1
    ]
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
                return [f"their losses do not compare: {difference}", *warnings]
    return warnings


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
