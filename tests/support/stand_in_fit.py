"""Stands in for `lrtrain fit` at the process boundary: a run directory and a record without training.

The held-out loss is (log10(lr) + 2)² + seed / 100. A rate above 0.5 diverges, one below 0.0001 crashes, a negative one
is refused. STAND_IN_SECONDS is how long a run takes; SIGTERM saves a checkpoint and ends it. Every start is a line in
`starts` of the runs folder: the run's name and whether it resumed.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

RATE = "model.optimizers.hidden.lr"


def main(argv: list[str]) -> None:
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in argv if "=" in flag)
    runs, rate, seed = Path(settings["runs"]), float(settings[RATE]), int(settings.get("seed_everything", 0))
    folder = runs / settings["name"]
    saved = sorted(folder.glob("*/checkpoints/*"))
    with open(runs / "starts", "a") as starts:
        starts.write(f"{settings['name']} {'resumed' if saved else 'fresh'} {os.environ['OMP_NUM_THREADS']}\n")
    if rate < 0:
        print("lrtrain: error: model.optimizers.hidden: lr must be positive")
        sys.exit(2)
    run = saved[-1].parents[1] if saved else folder / f"{len(list(folder.glob('[0-9]*'))) + 1:04d}"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    record(run, status="RUNNING")

    def leave(*_: Any) -> None:
        (run / "checkpoints" / "step-00000001.ckpt").touch()
        record(run, status="KILLED")
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    (run / "checkpoints" / "step-00000000.ckpt").touch()
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
    if rate < 1e-4:
        raise RuntimeError("the stand-in's crash")
    if rate > 0.5:
        print("lrtrain: error: stopped at step 7: non-finite gradients in 3 steps in a row, from step 4 on")
        sys.exit(2)
    record(run, step=1, metrics={"val/loss": (math.log10(rate) + 2) ** 2 + seed / 100, "train/loss": 1.0})
    record(run, status="FINISHED")


def record(run: Path, **content: Any) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"time": int(time.time() * 1000), **content}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
