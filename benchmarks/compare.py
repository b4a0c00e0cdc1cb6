"""The time of `lrtrain compare` over many long runs in an MLflow database: table, every figure, the page.

The runs are written straight into a fresh database, in the order in which runs that follow one another log: the loss
and the three axes at every point, the spectral norms at every 25th. The command is the real one in its own process.
"""

import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import command_line, report
from lrtrain.tracking.destination import connect, quiet

MOST_SECONDS = 15.0
EVERY_POINT = ("train/loss", "throughput/tokens_seen", "throughput/flops", "throughput/seconds")
EVERY_25TH = ("spectral/sigma_A", "spectral/sigma_B", "spectral/update_over_lr", "spectral/blocks.0.output/update_norm")
LAST = ("throughput/step_seconds", "throughput/validation_seconds")
GROUPS = 5

Row = tuple[str, float, int, int, bool, str]


def write_runs(folder: Path, runs: int, points: int) -> None:
    """An MLflow database with `runs` finished runs, under `GROUPS` names, of `points` points a metric."""
    quiet()
    connect(f"sqlite:///{folder}/mlflow.db", folder)
    database = sqlite3.connect(folder / "mlflow.db")
    database.execute("PRAGMA synchronous=OFF")
    for group in range(GROUPS):
        database.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) VALUES (?, ?, ?, ?)",
            (group + 1, f"name-{group}", str(folder), "active"),
        )
    for index in range(runs):
        run, group = uuid.uuid4().hex, index % GROUPS
        database.execute(
            "INSERT INTO runs (run_uuid, name, user_id, status, lifecycle_stage, experiment_id, start_time, end_time)"
            " VALUES (?, ?, '', 'FINISHED', 'active', ?, ?, ?)",
            (run, f"name-{group}/{index:04d}", group + 1, index, index + 1),
        )
        parameters = {"seed_everything": index, "model.optimizers.hidden.init_args.lr": 0.01 * (group + 1)}
        database.executemany(
            "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, str(value), run) for key, value in parameters.items()],
        )
        rows = list(_points(run, group, points))
        database.executemany(
            "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        latest = {row[0]: row for row in rows}
        database.executemany(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
            latest.values(),
        )
        database.commit()
    database.close()


def _points(run: str, group: int, points: int) -> Iterator[Row]:
    draw = random.Random(run)
    for step in range(points):
        keys = EVERY_POINT + (EVERY_25TH if step % 25 == 24 else ()) + (LAST if step == points - 1 else ())
        for key in keys:
            value = 3 + 5 / (1 + step / 50) + 0.01 * group + draw.gauss(0, 0.05) if key == "train/loss" else step + 1.0
            yield key, value, 1_000_000 + 100 * step, step, False, run


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--runs", type=int, default=50, help="runs [50]")
    parser.add_argument("--points", type=int, default=10_000, help="points of a metric in a run [10000]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_runs(folder, args.runs, args.points)
        names = [f"name-{group}" for group in range(GROUPS)]
        options = ["--metric", "train/loss", "--runs", str(folder), "--html", str(folder / "page.html")]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lrtrain", "compare", *names, *options], check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        row = {
            "runs": args.runs,
            "points": args.points,
            "read": args.runs * (len(EVERY_POINT) * args.points + len(EVERY_25TH) * args.points // 25),
            "page MB": (folder / "page.html").stat().st_size / 1e6,
            "cpu s": used.ru_utime + used.ru_stime,
            "s": seconds,
            "required": f"≤ {MOST_SECONDS:g} s",
            "met": seconds <= MOST_SECONDS,
        }
    report([row], "compare", args.out)


if __name__ == "__main__":
    main()
