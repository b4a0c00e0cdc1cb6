"""What is to be trained, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Resources:
    """What a study may use: the folder `runs`, `jobs` processes at a time of `threads` CPU threads each, and the folder
    `records` of what ended elsewhere."""

    runs: Path
    jobs: int = 1
    threads: int = 1
    records: Path | None = None


@dataclass(frozen=True)
class Job:
    """One run of `lrtrain fit` under `<runs>/<name>`; the name is its own.

    Args:
        name: of the run, a folder inside `runs`.
        configs: YAML files, a recipe and its overlays.
        settings: values by dotted configuration key, stronger than the files.
        runs: the folder of all runs.
        threads: `OMP_NUM_THREADS` of the process.
        tags: of the MLflow run. With tags the run is tracked by `MLflowLogger`: the one in `settings`, else the default
            one, whatever the files name.
        records: folder of records that travel: the job's is taken from there, or written there as it ends.
    """

    name: str
    configs: tuple[Path, ...]
    settings: dict[str, object]
    runs: Path
    threads: int = 1
    tags: dict[str, str] = field(default_factory=dict)
    records: Path | None = None

    @property
    def folder(self) -> Path:
        """`<runs>/<name>`."""
        return self.runs / self.name

    def run_dirs(self) -> list[Path]:
        """The run directories of the job, newest first."""
        return sorted((path for path in self.folder.glob("[0-9]" * 4) if path.is_dir()), reverse=True)

    def newest_run(self) -> Path | None:
        """The newest run directory, None before there is one."""
        return next(iter(self.run_dirs()), None)


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        status: `diverged` where training was stopped for its gradients, or the metric is no number.
        metric: the last value logged; infinite if diverged, None if failed.
        run_dir: `<runs>/<name>/<NNNN>`, None if there is none.
        reason: why it diverged or failed, in a line; else empty.
        seconds: wall time of the process, or of the record of an earlier one.
        refused: the job failed with exit code 2, a mistake in the configuration.
        kept: it had ended before, and nothing was trained.
    """

    status: Literal["finished", "diverged", "failed"]
    metric: float | None
    run_dir: Path | None
    reason: str
    seconds: float
    refused: bool = False
    kept: bool = False
