"""A prepared data set: every document once, the same however it was made, and reused or refused by its request."""

import json
from pathlib import Path

import pytest
from litdata import StreamingDataset, TokensLoader

from lrtrain.data import encode
from lrtrain.data.encode import held_out
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.data.tokenizer import load_tokenizer
from lrtrain.runtime.errors import UserError
from sources import TEXTS, contents, decoded


def test_every_document_arrives_once_on_the_side_that_its_hash_says(tmp_path: Path, source: list[str]) -> None:
    manifest = prepare(PrepareSpec(source, train_vocab_size=300, val_fraction=0.2), str(tmp_path / "out"))
    everything = [*TEXTS[:300], *TEXTS[:2], *TEXTS[300:]]
    for name in ("train", "val"):
        wanted = [text for text in everything if held_out(text, 0.2) == (name == "val")]
        assert decoded(tmp_path / "out", name) == wanted
        split = manifest.split(name)
        assert (split.documents, split.bytes) == (len(wanted), sum(len(text.encode()) for text in wanted))
    assert 40 < manifest.val.documents < 120
    assert Manifest.load(str(tmp_path / "out")) == manifest


def test_an_end_of_text_spelled_in_a_document_stays_text(tmp_path: Path, tokenizer: str) -> None:
    texts = [f"{i} says <|endoftext|> aloud" for i in range(30)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    manifest = prepare(
        PrepareSpec([str(tmp_path / "x.jsonl")], tokenizer=tokenizer, val_fraction=0.3), str(tmp_path / "out")
    )
    blocks = StreamingDataset(str(tmp_path / "out" / "train"), item_loader=TokensLoader(block_size=1))
    assert sum(int(block[0]) == manifest.eot_id for block in blocks) == manifest.train.documents


def test_the_result_does_not_depend_on_the_number_of_workers(
    tmp_path: Path, source: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 16)
    monkeypatch.setattr(encode, "CHARACTERS_HERE", 40_000)  # about a tenth
    for workers in (1, 4):
        prepare(PrepareSpec(source, train_vocab_size=300, workers=workers), str(tmp_path / str(workers)))
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


def test_the_token_limit_is_kept_and_the_rest_is_not_read(
    tmp_path: Path, source: list[str], tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 16)
    Path(source[0], "d.jsonl").write_text("not JSON at all")
    spec = PrepareSpec(source, tokenizer=tokenizer, val_fraction=0.2, max_tokens=5000)
    manifest = prepare(spec, str(tmp_path / "out"))
    assert 4500 < manifest.train.tokens <= 5000


def test_a_vocabulary_beyond_two_bytes_is_written_in_four(tmp_path: Path, source: list[str], tokenizer: str) -> None:
    large = load_tokenizer(tokenizer)
    large.add_tokens([f"<extra{i}>" for i in range(2**16)])
    large.save(str(tmp_path / "large.json"))
    manifest = prepare(PrepareSpec(source, tokenizer=str(tmp_path / "large.json")), str(tmp_path / "out"))
    assert (manifest.dtype, manifest.vocab_size) == ("int32", 300 + 2**16)
    assert decoded(tmp_path / "out", "val")


def test_a_finished_data_set_is_reused_and_another_request_is_refused(tmp_path: Path, source: list[str]) -> None:
    spec = PrepareSpec(source, train_vocab_size=300)
    manifest = prepare(spec, str(tmp_path / "out"))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.bin")}
    assert prepare(PrepareSpec(source, train_vocab_size=300, workers=1), str(tmp_path / "out")) == manifest
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.bin")}
    with pytest.raises(UserError, match="train_vocab_size is 300 there and 400 in the request"):
        prepare(PrepareSpec(source, train_vocab_size=400), str(tmp_path / "out"))


def test_a_mistake_can_be_corrected_in_the_same_folder(tmp_path: Path, source: list[str], tokenizer: str) -> None:
    out = str(tmp_path / "out")
    for wrong in (
        PrepareSpec(source, tokenizer=tokenizer, text_column="content"),
        PrepareSpec(source, tokenizer=tokenizer, val_fraction=1e-9),
        PrepareSpec(source, tokenizer=f"{source[0]}/a.jsonl"),
        PrepareSpec([f"{source[0]}/*.csv"], tokenizer=tokenizer),
    ):
        with pytest.raises(UserError) as raised:
            prepare(wrong, out)
        assert "\n" not in str(raised.value)
    assert prepare(PrepareSpec(source, tokenizer=tokenizer), out).train.documents > 300


def test_a_folder_of_the_users_own_is_left_alone(tmp_path: Path, source: list[str]) -> None:
    mine = tmp_path / "data" / "train" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(UserError, match="not from a preparation"):
        prepare(PrepareSpec(source, train_vocab_size=300), str(tmp_path / "data"))
    assert mine.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "damaged"), ("[]", "not a manifest"), ('{"format": 99}', "format 99"), ('{"format": 1}', "damaged")],
)
def test_a_manifest_that_cannot_be_used_gets_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=words):
        Manifest.load(str(tmp_path))


def test_a_missing_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lrtrain prepare"):
        Manifest.load(str(tmp_path / "nowhere"))
