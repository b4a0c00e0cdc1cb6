"""A data set and flags with which any recipe runs in a second."""

from pathlib import Path

from lrtrain.data.preparation import PrepareSpec, prepare

VOCABULARY = 300
BLOCK = 32

MODEL = [
    f"--model.decoder.vocab_size={VOCABULARY}",
    "--model.decoder.width=64",
    "--model.decoder.depth=2",
    "--model.decoder.heads=2",
    "--model.decoder.kv_heads=2",
    "--model.decoder.ffn_width=96",
]
TRAINER = [
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
]


def shards(folder: Path) -> Path:
    """Prepares a few hundred short documents and returns the folder of the shards."""
    text = folder / "text.jsonl"
    words = ["spectral", "norm", "factor", "rank", "shard", "token", "decoder", "update", "bound", "step"]
    lines = [" ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(30)) + f" {i}" for i in range(400)]
    text.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    path = folder / "shards"
    prepare(PrepareSpec(source=[str(text)], train_vocab_size=VOCABULARY, val_fraction=0.2), str(path))
    return path


def flags(path: Path | str, runs: Path, steps: int = 2) -> list[str]:
    """Flags that turn a recipe into a run of a second on the given shards."""
    data = [
        f"--data.path={path}",
        f"--data.block_size={BLOCK}",
        "--data.batch_size=4",
        "--data.num_workers=0",
        "--data.prepare=null",
    ]
    return [*MODEL, *TRAINER, *data, f"--runs={runs}", f"--trainer.max_steps={steps}"]
