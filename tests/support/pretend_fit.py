"""Stands for `lrtrain fit` as a process: leaves the record of a run whose loss is a law of its width and steps.

    loss = 3 + (ln width − 4)² / 10 + 40 / steps + (ln lr − ln 0.04)² / 10

With PRETEND_MOVES in the environment the best learning rate is 0.04 at depth 2 and falls as 1 / depth. PRETEND_FIT
names there settings that make it fail: `mistake`, `crash`, `diverge` or `tokens`, a colon, and a part of the run's
name. Every start adds a line with the run's name to the file in PRETEND_LOG.
"""

import json
import math
import os
import sys
from pathlib import Path

LOSS_OF = {"width": 4.0, "lr": math.log(0.04)}


def main() -> int:
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:] if "=" in flag)
    name = settings["name"]
    with open(os.environ["PRETEND_LOG"], "a") as log:
        log.write(name + "\n")
    kind, _, part = os.environ.get("PRETEND_FIT", ":nothing").partition(":")
    hit = part in name
    if hit and kind == "mistake":
        print("lrtrain: error: --model.decoder.vocab_size: expected int, got many", file=sys.stderr)
        return 2
    if hit and kind == "crash":
        raise RuntimeError("out of memory")
    if hit and kind == "diverge":
        print("lrtrain: error: stopped at step 7: non-finite gradients in blocks.0", file=sys.stderr)
        return 2
    steps, width = int(settings["trainer.max_steps"]), int(settings["model.decoder.width"])
    loss = 3 + (math.log(width) - LOSS_OF["width"]) ** 2 / 10 + 40 / steps
    if "model.optimizers.hidden.lr" in settings:
        moved = int(settings["model.decoder.depth"]) / 2 if "PRETEND_MOVES" in os.environ else 1
        loss += (math.log(float(settings["model.optimizers.hidden.lr"]) * moved) - LOSS_OF["lr"]) ** 2 / 10
    tokens = steps * int(os.environ["PRETEND_TOKENS"]) // (2 if hit and kind == "tokens" else 1)
    lines = [
        {"time": 1, "status": "RUNNING"},
        {"time": 2, "step": steps, "metrics": {"throughput/tokens_seen": tokens}},
        {"time": 3, "step": steps, "metrics": {"val/loss": loss}},
        {"time": 4, "status": "FINISHED"},
    ]
    folder = Path(settings["runs"], name, "0001")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
