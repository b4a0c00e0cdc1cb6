"""An experiment's file at toy size."""

from pathlib import Path
from typing import Any

import yaml

import toy
from commandline import RECIPE


def write(folder: Path, shards: Path, **changes: Any) -> list[str]:
    """An experiment of two widths, of which the law of the stand-in favors the first, and its command line."""
    settings = {
        "model.decoder.vocab_size": toy.VOCABULARY,
        "model.decoder.heads": 2,
        "model.decoder.depth": 2,
        "model.decoder.ffn_width": 96,
        "data.path": str(shards),
        "data.block_size": toy.BLOCK,
        "data.batch_size": 4,
        "data.prepare": None,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.limit_val_batches": 2,
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 2,
    }
    content = {
        "title": "widths",
        "claim": "56 is the better width",
        "source": "none",
        "scales": {"tiny": {"configs": [str(RECIPE)], "settings": settings, "seeds": 2}},
        "variants": {
            "good": {"settings": {"model.decoder.width": 56}, "tiny": {"lr": 0.08, "x": 56}, "published": "loss 1"},
            "bad": {"settings": {"model.decoder.width": 128}, "tiny": {"lr": 0.02, "x": 128}},
        },
        "xlabel": "width",
        "figure": [{"metric": "val/loss"}, {"metric": "val/loss", "over": "x"}, {"metric": "spectral/*/sigma_A"}],
        "checks": [{"order": ["good", "bad"]}],
        **changes,
    }
    folder = folder / "experiments"
    folder.mkdir(exist_ok=True)
    (folder / "widths.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return ["experiment", str(folder / "widths.yaml"), "--runs", str(folder.parent / "runs")]
