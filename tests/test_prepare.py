"""`lrtrain prepare`: the result, interruptions, two at once, a full disk, and a careless user."""

import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from litdata import StreamingDataset, TokensLoader

from lrtrain.commands.prepare import main
from lrtrain.data import encode, shards
from lrtrain.data import prepare as preparing
from lrtrain.data.encode import held_out
from lrtrain.data.manifest import Manifest
from lrtrain.data.prepare import PrepareSpec, prepare
from lrtrain.data.tokenizer import load_tokenizer, train_tokenizer
from lrtrain.errors import UserError

TEXTS = [f"Document {i}: " + " ".join(f"word{(i * j) % 97}" for j in range(60)) for i in range(400)]


@pytest.fixture
def source(tmp_path: Path) -> list[str]:
    """Two JSON-lines files and a parquet file, 400 documents in all, two of them twice."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, texts in (("a.jsonl", TEXTS[:150]), ("b.jsonl", TEXTS[150:300] + TEXTS[:2])):
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": TEXTS[300:]}), folder / "c.parquet", row_group_size=30)
    return [str(folder)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    file = tmp_path / "given.json"
    train_tokenizer(TEXTS, 300).save(str(file))
    return str(file)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}


def decoded(folder: Path, split: str) -> list[str]:
    """The documents of a split, read by LitData and cut at the end-of-text token."""
    manifest = Manifest.load(str(folder))
    blocks = StreamingDataset(str(folder / split), item_loader=TokensLoader(block_size=1))
    tokens = np.concatenate([block.numpy() for block in blocks]).tolist()
    assert tokens[-1] == manifest.eot_id
    text = load_tokenizer(str(folder)).decode(tokens, skip_special_tokens=False)
    return text.split("<|endoftext|>")[:-1]


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


FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["lrtrain.data.datamodule"])


def run(spec: dict[str, Any], out: str, said: str, settings: dict[str, float]) -> None:
    """What another process does: prepare with small batches, and write what it says, or the UserError, to a file."""
    encode.BATCH_DOCUMENTS = 8
    shards.CHUNK_TOKENS = int(settings.get("chunk", shards.CHUNK_TOKENS))
    preparing.SAVE_SECONDS = settings.get("save_seconds", 0.0)
    if "slow" in settings:
        append = preparing._append
        preparing._append = lambda *arguments: time.sleep(settings["slow"]) or append(*arguments)
    if "limit" in settings:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(settings["limit"]), resource.RLIM_INFINITY))
    with open(said, "w", buffering=1) as file, redirect_stdout(file):
        try:
            prepare(PrepareSpec(**spec), out)
        except UserError as error:
            print(f"UserError: {error}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Path]]]:
    """Start a preparation in another process: gives the process and the file of what it says."""
    started: list[Any] = []

    def begin(spec: dict[str, Any], out: Path, **settings: float) -> tuple[Any, Path]:
        said = tmp_path / f"said-{len(started)}"
        process = FORK.Process(target=run, args=(spec, str(out), str(said), settings))
        process.start()
        started.append(process)
        return process, said

    yield begin
    for process in started:
        process.kill()
        process.join()


def kill_at(chunk: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not chunk.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert chunk.exists()


def test_a_killed_preparation_goes_on_where_it_stopped_and_ends_with_the_same_files(
    tmp_path: Path,
    source: list[str],
    start: Callable[..., tuple[Any, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 2048)
    spec = {"source": source, "train_vocab_size": 300, "workers": 2}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for chunk in ("chunk-00004.bin", "chunk-00014.bin"):
        process, _ = start(spec, killed, chunk=2048, slow=0.01)
        kill_at(killed / "train" / chunk, process)
        with pytest.raises(UserError, match="not finished"):
            Manifest.load(str(killed))
    with pytest.raises(UserError, match="another request, val_fraction is"):
        prepare(PrepareSpec(source, train_vocab_size=300, val_fraction=0.5), str(killed))
    for out in (killed, whole):
        prepare(PrepareSpec(**spec), str(out))
        assert capsys.readouterr().out.startswith("Going on with" if out == killed else "Preparing")
    assert contents(killed) == contents(whole)


def test_two_processes_that_prepare_at_once_make_one_whole_data_set(
    tmp_path: Path, source: list[str], start: Callable[..., tuple[Any, Path]]
) -> None:
    both = [start({"source": source, "train_vocab_size": 300}, tmp_path / "out", slow=0.03) for _ in range(2)]
    for process, _ in both:
        process.join()
    said = "".join(file.read_text() for _, file in both)
    assert said.count("Preparing") == 1, said
    assert said.count("waiting") == 1, said
    assert "UserError" not in said
    assert decoded(tmp_path / "out", "train")


def test_a_full_disk_gets_one_line_and_the_next_try_goes_on(
    tmp_path: Path, source: list[str], tokenizer: str, start: Callable[..., tuple[Any, Path]]
) -> None:
    spec = {"source": source, "tokenizer": tokenizer}
    process, said = start(spec, tmp_path / "out", limit=20_000)
    process.join()
    assert said.read_text().splitlines()[-1].startswith("UserError: no space left while writing")
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(PrepareSpec(**spec), str(tmp_path / "out"))
    prepare(PrepareSpec(**spec), str(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


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


def test_sources_that_changed_during_an_interruption_are_refused(
    tmp_path: Path, source: list[str], start: Callable[..., tuple[Any, Path]]
) -> None:
    process, _ = start({"source": source, "train_vocab_size": 300}, tmp_path / "out", chunk=2048, slow=0.01)
    kill_at(tmp_path / "out" / "train" / "chunk-00003.bin", process)
    with Path(source[0], "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match=r"have changed.*a\.jsonl"):
        prepare(PrepareSpec(source, train_vocab_size=300), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exactly one of tokenizer and train_vocab_size"),
        (["--train-vocab-size", "300", "--tokenizer", "x.json"], "exactly one"),
        (["--train-vocab-size", "10"], "257"),
        (["--train-vocab-size", "300", "--val-fraction", "0"], "val_fraction"),
        (["--train-vocab-size", "300", "--val-fraction", "1.5"], "val_fraction"),
        (["--train-vocab-size", "300", "--max-tokens", "0"], "max_tokens"),
        (["--train-vocab-size", "300", "--max-tokens", "3"], "max_tokens"),
        (["--train-vocab-size", "300", "--workers", "-1"], "workers"),
        (["--tokenizer", "missing.json"], r"missing\.json does not exist"),
        (["--train-vocab-size", "300", "--text-column", "body"], "has no column 'body', it has text"),
    ],
)
def test_a_wrong_option_gets_one_line_and_leaves_nothing_to_train_on(
    tmp_path: Path, source: list[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as raised:
        main(["--out", str(tmp_path / "out"), "--source", *source, *arguments])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("text", ["", " \n\n \n", "\ufeff"])
def test_a_source_without_text_gets_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.txt").write_text(text)
    with pytest.raises(UserError, match="holds no text"):
        main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / "empty.txt"), "--train-vocab-size", "300"])
    assert not (tmp_path / "out" / "train").exists()


def test_an_output_that_cannot_be_written_gets_one_line(tmp_path: Path, source: list[str]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write"):
            main(["--out", str(out), "--source", *source, "--train-vocab-size", "300"])
    with pytest.raises(UserError, match="local folder"):
        main(["--out", "s3://bucket/data", "--source", *source, "--train-vocab-size", "300"])


def test_the_command_says_what_it_made(tmp_path: Path, source: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out"), "--source", *source, "--train-vocab-size", "300"]) == 0
    said = capsys.readouterr().out
    assert "3 files" in said.splitlines()[0]
    for word in ("documents", "bytes a token", "vocabulary 300", "uint16", str(tmp_path / "out")):
        assert word in said


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
