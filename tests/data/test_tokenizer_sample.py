"""What a tokenizer is trained on: all of a small source, an even sample of a large one, never more than the limit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lrtrain.data import tokenizer_sample
from lrtrain.data.listing import Part, list_sources
from lrtrain.data.spec import PrepareSpec

LIMIT = 100_000


def sampled(folder: Path, monkeypatch: pytest.MonkeyPatch, sizes: bool = True, **spec: float) -> list[str]:
    monkeypatch.setattr(tokenizer_sample, "SAMPLE_CHARACTERS", LIMIT)
    request = PrepareSpec([str(folder)], train_vocab_size=300, **spec)  # type: ignore[arg-type]
    parts: list[Part] = list_sources(request.source).parts
    return [*tokenizer_sample._sample(request, parts if sizes else [replace(part, size=0) for part in parts])]


def written(folder: Path, characters: list[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, many in enumerate(characters):
        (folder / f"{number:04}.txt").write_text(f"{number:04} ".ljust(many, "x"))
    return folder


@pytest.mark.parametrize("sizes", [True, False], ids=["sizes", "no sizes"])
def test_of_many_small_files_an_even_part_is_taken_whole(
    sizes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sampled(written(tmp_path / "many", [90] * 4000), monkeypatch, sizes, val_fraction=0.05)
    assert {len(text) for text in texts} == {90}
    assert 0.95 * LIMIT <= sum(map(len, texts)) <= LIMIT + 90
    numbers = [int(text[:4]) for text in texts]
    for start in range(0, 4000, 500):  # as many of each eighth, but for those held out
        assert sum(start <= number < start + 500 for number in numbers) == pytest.approx(len(texts) / 8, rel=0.1)


def test_a_small_source_is_taken_whole_without_what_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "few", [50_000, 10, 300, 20_000, *[100] * 100])
    whole = "".join(sampled(folder, monkeypatch, val_fraction=1e-9))  # .txt are read in pieces
    assert whole == "".join(file.read_text() for file in sorted(folder.iterdir()))
    assert 0.5 * len(whole) < len("".join(sampled(folder, monkeypatch, val_fraction=0.1))) < len(whole)


def test_a_document_beyond_the_limit_leaves_the_others_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "one", [1000] * 100)
    (folder / "0000.jsonl").write_text(json.dumps({"text": "y" * 900_000}))
    texts = sampled(folder, monkeypatch, val_fraction=1e-9)
    (longest,) = (text for text in texts if text.startswith("y"))
    assert len(longest) == pytest.approx(0.9 * LIMIT, rel=1e-3)
    assert sum(map(len, texts)) == pytest.approx(LIMIT, rel=0.02)
    assert len(texts) > 5
