"""bits_per_byte by the harness's rolling log-likelihood beside our validation's, on the same held-out documents."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import toy
from commandline import arguments
from lrtrain.cli.main import main
from lrtrain.config.trained_model import load
from lrtrain.data.encode import held_out
from lrtrain.data.encoder import Encoder
from lrtrain.data.tokenizer import train_tokenizer
from lrtrain.tracking.recorded import recorded

BLOCK, FRACTION = 48, 0.3
WORDS = ["spectral", "norm", "factor", "rank", "shard", "token", "decoder", "update", "bound", "step", "hill"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS) * 3], toy.VOCABULARY)


def document(encoder: Encoder, tokens: int, seed: int, wanted: bool) -> str:
    """A text of so many tokens that is held out, or is not."""
    drawn = random.Random(seed)
    while True:
        ids = encoder.documents([" ".join(drawn.choices(WORDS, k=tokens))])[0][:tokens].tolist()
        text = encoder.tokenizer.decode(ids)
        if len(encoder.documents([text])[0]) == tokens + 1 and held_out(text, FRACTION) == wanted:
            return str(text)


def trained(folder: Path, tokenizer: Tokenizer, held: list[str], encoder: Encoder) -> Path:
    """The directory of a run of some steps that validates on these documents after the last one."""
    train = [document(encoder, BLOCK, 10_000 + seed, False) for seed in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*train, *held]))
    tokenizer.save(str(folder / "tokenizer.json"))
    data = {"source": f"[{folder}/text.jsonl]", "tokenizer": folder / "tokenizer.json", "val_fraction": FRACTION}
    path = folder / "shards"
    flags = [flag for name, value in data.items() for flag in (f"--{name.replace('_', '-')}", str(value).strip("[]"))]
    assert main(["prepare", *flags, "--out", str(path)]) == 0
    limits = ["--trainer.limit_val_batches=null", f"--data.block_size={BLOCK}", "--trainer.val_check_interval=6"]
    assert main(["fit", *arguments(path, folder / "runs", *limits, steps=6)]) == 0
    return folder / "runs/quickstart/0001"


def by_harness(run: Path, held: list[str], folder: Path) -> float:
    """bits_per_byte of a task that asks for the documents' rolling log-likelihoods."""
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held))
    (tasks / "held.yaml").write_text(
        "task: held\ndataset_path: json\ndataset_kwargs: {data_files: {test: held.jsonl}}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    assert main(["evaluate", str(run), "--tasks", "held", "--include-path", str(tasks)]) == 0
    return recorded(run).last["eval/held/bits_per_byte"]  # type: ignore[union-attr]


def validated(run: Path) -> float:
    return recorded(run).last["val/bits_per_byte"]  # type: ignore[union-attr]


def test_both_are_equal_where_every_block_is_a_document_after_its_end_of_text(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """The first document has a token more than a block's inputs, so that every later block begins with the end-of-text
    token before a document and ends with the document. What is left: the validation's tokens a byte count that token,
    which the harness does not (a factor), and the first block has no end-of-text token before it (one in hundreds).
    """
    encoder = Encoder(tokenizer, np.dtype(np.int64))
    held = [document(encoder, BLOCK + (seed == 0), seed, True) for seed in range(400)]
    run = trained(tmp_path, tokenizer, held, encoder)
    ours, theirs = validated(run), by_harness(run, held, tmp_path)
    assert ours * BLOCK / (BLOCK + 1) == pytest.approx(theirs, abs=1e-3)
    assert abs(ours - theirs) > 1e-2, "the factor makes a difference"


@torch.no_grad()
def test_elsewhere_they_differ_by_document_borders_and_windows_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The harness asks every document by itself, after an end-of-text token; validation reads one stream in blocks."""
    encoder = Encoder(tokenizer, np.dtype(np.int64))
    held = [document(encoder, random.Random(seed).randint(5, 4 * BLOCK), seed, True) for seed in range(80)]
    run = trained(tmp_path, tokenizer, held, encoder)
    ours, theirs = validated(run), by_harness(run, held, tmp_path)
    decoder, _ = load(run / "checkpoints/step-00000006.ckpt")

    def nats(sequence: list[int]) -> float:
        """Of all tokens but the first."""
        tokens = torch.tensor([sequence])
        logits = decoder.logits(decoder(tokens[:, :-1]))
        return float(F.cross_entropy(logits[0].double(), tokens[0, 1:], reduction="sum"))

    texts = [encoder.documents([text])[0].tolist() for text in held]
    n_bytes = sum(len(text.encode()) for text in held)
    stream = [token for text in texts for token in text]
    blocks = [stream[start : start + BLOCK + 1] for start in range(0, len(stream) - BLOCK, BLOCK + 1)]
    mean = sum(map(nats, blocks)) / (len(blocks) * BLOCK)
    assert ours == pytest.approx(mean / np.log(2) * len(stream) / n_bytes, rel=1e-4)

    windows = []
    for text in texts:
        line = [encoder.separator, *text[:-1]]  # the token after a document is not asked for
        windows += [line[start : start + BLOCK + 1] for start in range(0, len(line) - 1, BLOCK)]
    last = {id(window) for window in windows if len(window) <= BLOCK}
    total = 0.0
    for number, window in enumerate(windows):
        if (
            id(window) in last
            and number
            and len(windows[number - 1]) == BLOCK + 1
            and window[0] == windows[number - 1][-1]
        ):
            before = windows[number - 1]
            context = [*before[:-1], *window][-(BLOCK + 1) :]  # the last window is filled up from before
            total += nats(context) - nats(context[: len(context) - len(window) + 1])
        else:
            total += nats(window)
    assert theirs == pytest.approx(total / np.log(2) / n_bytes, rel=1e-4)
    assert abs(ours - theirs) > 1e-3
