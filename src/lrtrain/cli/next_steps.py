"""What a user may do next with a run: at its end, and where a signal ended it."""

import shlex
import signal
from pathlib import Path

LONGER = 2
"""How many times as many steps the command has that goes on with a run that is over."""


def after_the_end(run_dir: Path, name: str, steps: int) -> list[tuple[str, str]]:
    """Lines for the summary of a run that is over, each a purpose and a command that does it.

    Args:
        run_dir: Where checkpoints and record are.
        name: Of the run.
        steps: That it has done.
    """
    run = shlex.quote(str(run_dir))
    return [
        ("go on", f"{_resume(run_dir)} --trainer.max_steps {LONGER * steps}"),
        ("write texts", f"lrtrain generate {run} --prompt TEXT"),
        ("compare", f"lrtrain compare {shlex.quote(name)} OTHER{_runs_flag(run_dir, name)} --html compare.html"),
        ("report", f"lrtrain report {run}"),
        ("export", f"lrtrain export {run} --out {shlex.quote(Path(name).name)}.hf"),
    ]


def after_a_signal(received: signal.Signals, run_dir: Path, checkpoint: Path | None) -> str:
    """Where the work of a run is that a signal ended, and how to go on with it."""
    if checkpoint is None:
        return f"ended by {received.name} before the first step was done: there is no checkpoint in {run_dir}"
    return f"ended by {received.name}; saved {checkpoint}\ngo on with: {_resume(run_dir)}"


def _resume(run_dir: Path) -> str:
    return f"lrtrain fit --config {shlex.quote(str(run_dir / 'config.yaml'))} --ckpt_path last"


def _runs_flag(run_dir: Path, name: str) -> str:
    """`--runs FOLDER`, where the runs are not in `runs`."""
    runs = Path(*run_dir.parts[: -1 - len(Path(name).parts)])
    return "" if str(runs) == "runs" else f" --runs {shlex.quote(str(runs))}"
