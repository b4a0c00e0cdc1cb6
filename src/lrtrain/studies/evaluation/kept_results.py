"""Where the figures of an evaluation go: a JSON file, and the record of the run."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrtrain.runtime.files import write_atomically, writing
from lrtrain.studies.evaluation.evaluated_model import EvaluatedModel
from lrtrain.studies.evaluation.harness_run import Evaluated
from lrtrain.tracking.afterwards import record_afterwards

FOLDER = "evaluations"
PACKAGES = ("lrtrain", "lm_eval", "torch", "datasets")


def keep(
    found: Evaluated, model: EvaluatedModel, out: Path | None, record: bool, asked: Mapping[str, Any]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Writes the JSON and records the metrics. Each evaluation has a file of its own in its run's directory.

    Returns:
        (what, where) of each place, and warnings.

    Raises:
        UserError: a file cannot be written.
    """
    moment = datetime.now(UTC)
    about = {
        "model": str(model.path),
        "step": model.step,
        **model.facts,
        **asked,
        "time": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        "versions": {name: version(name) for name in PACKAGES},
    }
    text = found.as_json(about)
    lines: list[tuple[str, str]] = []
    warnings: list[str] = []
    name = f"{FOLDER}/step-{model.step or 0:08d}-{moment:%Y%m%dT%H%M%S.%fZ}.json"
    of_a_run = model.run_dir is not None and (model.run_dir / "metrics.jsonl").is_file()
    file = out or (model.run_dir / name if model.run_dir is not None and of_a_run and record else None)
    if file is None:
        warnings.append("no JSON: these figures are of no run that has a directory here, name a file by --out")
    else:
        with writing(f"cannot write {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text.encode())
        lines.append(("wrote", str(file)))
    if record and of_a_run and model.run_dir is not None and model.step is not None:
        recorded, more = record_afterwards(model.run_dir, model.step, found.metrics(), name, text)
        lines += [("recorded", line) for line in recorded]
        warnings += more
    elif record and model.step is not None:
        warnings.append(f"not recorded: {model.path} lies in no run's directory on this disk")
    return lines, warnings
