"""Sources and documents: what is listed, what a document is, streaming, and what a bad file says."""

import bz2
import gzip
import json
import lzma
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lrtrain.data import documents
from lrtrain.data.documents import read_documents
from lrtrain.data.formats import TEXT_DOCUMENT
from lrtrain.data.listing import list_sources
from lrtrain.data.preparation import prepare
from lrtrain.data.spec import PrepareSpec
from lrtrain.runtime.errors import UserError
from sources import decoded

FINEWEB = {
    "text": ["First page.", "Second page.", None, "   ", "Fifth page."],
    "id": ["a", "b", "c", "d", "e"],
    "dump": ["CC-MAIN-2013-20"] * 5,
    "url": ["http://example.org"] * 5,
    "date": ["2013-05-18T05:48:54Z"] * 5,
    "file_path": ["s3://commoncrawl/x"] * 5,
    "language": ["en"] * 5,
    "language_score": [0.9] * 5,
    "token_count": [3, 3, 0, 0, 3],
}
FINEWEB_TEXTS = ["First page.", "Second page.", "Fifth page."]


def texts(source: str | Path, column: str = "text", start: int = 0) -> list[str]:
    return [d.text for part in list_sources([str(source)]).parts for d in read_documents(part, column, start)]


def test_parquet_of_finewebs_schema_gives_its_texts_and_leaves_out_nulls_and_blanks(tmp_path: Path) -> None:
    pq.write_table(pa.table(FINEWEB), tmp_path / "a.parquet", row_group_size=2)
    assert texts(tmp_path / "a.parquet") == FINEWEB_TEXTS


def test_shards_of_c4_are_read_with_a_tokenizer_like_t5s(tmp_path: Path) -> None:
    pages = [f"Page {i} has some words, and\nanother line of {i * i}." for i in range(60)]
    for shard in range(3):
        rows = [{"text": page, "timestamp": "2019-04-25T12:57:54Z", "url": "https://e.org"} for page in pages[shard::3]]
        name = f"c4-train.0000{shard}-of-01024.json.gz"
        (tmp_path / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        pages, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in range(10)])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "t5.json"))
    source = [str(tmp_path / "c4-train.0000?-of-01024.json.gz")]
    made = prepare(
        PrepareSpec(source=source, tokenizer=str(tmp_path / "t5.json"), val_fraction=0.2), str(tmp_path / "data")
    )
    assert (made.train.documents + made.val.documents, made.eot_id) == (60, 1)
    assert made.vocab_size == tokenizer.get_vocab_size(with_added_tokens=True)
    found = [*decoded(tmp_path / "data", "train", "</s>"), *decoded(tmp_path / "data", "val", "</s>")]
    assert sorted(text.split() for text in found) == sorted(page.split() for page in pages)


def test_parquet_and_globs_are_read_through_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b", "a"):
        with memory.open(f"/fineweb/{name}.parquet", "wb") as out:
            pq.write_table(pa.table({"text": [f"text of {name}"]}), out)
    assert texts("memory://fineweb/*.parquet") == ["text of a", "text of b"]
    assert texts("memory://fineweb") == ["text of a", "text of b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json"])
def test_json_lines_are_read_plain_and_compressed_over_several_frames(tmp_path: Path, suffix: str) -> None:
    lines = [json.dumps({"body": f"line {i} ⌘"}).encode() + b"\n" for i in range(6)]
    halves = [b"".join(lines[:3]), b"\n" + b"".join(lines[3:])]
    compressors = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    compress = compressors.get(Path(f"x{suffix}").suffix, bytes)
    file = tmp_path / f"x{suffix}"
    file.write_bytes(b"".join(compress(half) for half in halves))
    assert texts(file, "body") == [f"line {i} ⌘" for i in range(6)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_reading_goes_on_exactly_after_any_document(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"x.{kind}"
    words = [f"document {i}" for i in range(40)]
    if kind == "parquet":
        pq.write_table(pa.table({"text": [w if i % 3 else None for i, w in enumerate(words)]}), file, row_group_size=7)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps({"text": w}) for w in words))
    else:
        file.write_text("\n\n".join(w * 500 for w in words))
    (part,) = list_sources([str(file)]).parts
    everything = list(read_documents(part))
    assert len(everything) > 20
    for i in range(len(everything)):
        assert list(read_documents(part, start=everything[i].position)) == everything[i + 1 :]


def test_a_large_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}. " + "word " * 100 + "\n \n" for i in range(200)]
    (tmp_path / "book.txt").write_text("".join(paragraphs))
    found = texts(tmp_path / "book.txt")
    assert "".join(found) == "".join(paragraphs)
    assert len(found) > 10
    assert all(text.startswith("Paragraph") and text.endswith("\n \n") for text in found)


def test_a_text_without_blank_lines_or_without_lines_is_still_cut(tmp_path: Path) -> None:
    (tmp_path / "one_line.txt").write_text("x" * 100_000)
    found = texts(tmp_path / "one_line.txt")
    assert "".join(found) == "x" * 100_000
    assert max(map(len, found)) <= 2 * TEXT_DOCUMENT


def test_a_source_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("a = 1\n\n" * 5000)
    assert texts(tmp_path / "m.py") == ["a = 1\n\n" * 5000]


def test_a_folder_gives_its_known_files_sorted_and_no_file_comes_twice(tmp_path: Path) -> None:
    for name in ("sub", ".git"):
        (tmp_path / name).mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", "picture.png", ".git/description.txt", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.md", "b.txt", "sub/c.txt"]
    assert len(list_sources([str(tmp_path), f"{tmp_path}/b*.txt"]).parts) == 3


def test_the_standard_library_is_several_megabytes_of_text_without_its_tests() -> None:
    parts = list_sources(["stdlib"]).parts
    assert parts == list_sources(["stdlib"]).parts
    assert 5e6 < sum(part.size for part in parts) < 40e6
    assert not [part.url for part in parts if re.search(r"/(tests?|site-packages)/", part.url.rpartition("python3")[2])]


def test_half_a_surrogate_pair_in_json_becomes_encodable_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "broken \\ud83d emoji"}\n')
    assert [text.encode() for text in texts(tmp_path / "x.jsonl")] == [b"broken ? emoji"]


def _bad_files(folder: Path) -> dict[str, tuple[str, str]]:
    """File name: what makes it bad, and what the line has to say."""
    (folder / "not.parquet").write_text("this is not parquet")
    pq.write_table(pa.table({"content": ["x"], "id": [1]}), folder / "column.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    whole = folder / "whole.parquet"
    pq.write_table(pa.table(FINEWEB), whole)
    (folder / "cut.parquet").write_bytes(whole.read_bytes()[:-20])
    (folder / "not.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "list.jsonl").write_text('["text"]\n')
    (folder / "column.jsonl").write_text('{"content": "x", "id": 1}\n')
    (folder / "number.jsonl").write_text('{"text": 7}\n')
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "word " * 999}).encode())[:-9])
    (folder / "not.jsonl.zst").write_text("not compressed")
    (folder / "latin.txt").write_bytes("a\n\nKäse".encode("latin-1"))
    names = ["text", "text"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=names), folder / "twice.parquet")
    pq.write_table(pa.table({"text": [{"a": "x"}]}), folder / "nested.parquet")
    offsets, data = np.array([0, 1, 2, 3], np.int32).tobytes(), b"a\xedb"
    broken = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    pq.write_table(pa.table({"text": broken}), folder / "broken.parquet")
    for name, line in {
        "surrogate.jsonl": b'{"text": "a \xed\xa0\xbd b"}',
        "key.jsonl": b'{"\\ud800\\n": 1}',
        "deep.jsonl": b'{"text": ' + b"[" * 100_000,
        "wide.jsonl": json.dumps(dict.fromkeys(map(str, range(500)), 1)).encode(),
        "utf16.jsonl": '{"text": "a"}'.encode("utf-16"),
        "bare16.jsonl": '{"text": "a"}'.encode("utf-16-le"),
        "packed.jsonl": gzip.compress(b'{"text": "a"}'),
        "utf16.txt": "text\n".encode("utf-16"),
        "utf32.txt": "text\n".encode("utf-32"),
        "bare16.txt": "text\n".encode("utf-16-le"),
        "packed.txt": bz2.compress(b"text"),
        "packed.log": lzma.compress(b"text"),
        "cut.txt.xz": lzma.compress(b"text" * 999)[:-9],
        "table.log": whole.read_bytes(),
        "lines.log": b'{"text": "a"}\n{"text": "b"}\n',
        "archive.tar": b"name".ljust(257, b"\0") + b"ustar",
    }.items():
        (folder / name).write_bytes(b"\n" + line if name == "surrogate.jsonl" else line)
    return {
        "twice.parquet": ("2 columns 'text'", "rename"),
        "nested.parquet": ("struct", "not text"),
        "broken.parquet": ("broken.parquet after document 1", "utf-8"),
        "surrogate.jsonl": ("line 2 is not UTF-8", "mend"),
        "key.jsonl": ("it has \\ud800\\n:", "text_column"),
        "deep.jsonl": ("line 1", "recursion"),
        "wide.jsonl": ("18, 19, …: name", "text_column"),
        "utf16.jsonl": ("line 1 is UTF-16", "iconv -f UTF-16 -t UTF-8"),
        "bare16.jsonl": ("line 1 holds NUL", "iconv -f UTF-16LE -t UTF-8"),
        "packed.jsonl": ("gzip", ".gz"),
        "utf16.txt": ("is UTF-16", "iconv -f UTF-16 -t UTF-8"),
        "utf32.txt": ("is UTF-32", "iconv -f UTF-32 -t UTF-8"),
        "bare16.txt": ("NUL", "iconv -f UTF-16LE -t UTF-8"),
        "packed.txt": ("bzip2", ".bz2"),
        "packed.log": ("xz", ".xz"),
        "cut.txt.xz": ("cut.txt.xz", "end-of-stream"),
        "table.log": ("is parquet", ".parquet"),
        "lines.log": ("JSON object", ".jsonl"),
        "archive.tar": ("tar archive", "unpack"),
        "not.parquet": ("not.parquet", "cannot read"),
        "column.parquet": ("content, id", "text_column"),
        "numbers.parquet": ("int64", "not text"),
        "cut.parquet": ("cut.parquet", "cannot read"),
        "not.jsonl": ("line 2", "not JSON"),
        "list.jsonl": ("line 1", "object"),
        "column.jsonl": ("content, id", "text_column"),
        "number.jsonl": ("line 1", "int, not text"),
        "cut.jsonl.gz": ("cut.jsonl.gz", "Truncated"),
        "not.jsonl.zst": ("not.jsonl.zst", "cannot read"),
        "latin.txt": ("latin.txt: line 3 is not UTF-8", "iconv -f LATIN1"),
        "missing.txt": ("missing.txt", "matches no file"),
        "*.csv": ("*.csv", "matches no file"),
    }


def test_every_bad_file_gets_one_line_that_names_it_and_the_trouble(tmp_path: Path) -> None:
    for name, words in _bad_files(tmp_path).items():
        with pytest.raises(UserError) as raised:
            texts(tmp_path / name)
        message = str(raised.value)
        assert "\n" not in message
        assert all(word in message for word in words), (name, message)


def test_whatever_a_parquet_file_holds_gives_texts_or_one_line(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {i}" for i in range(300)], "x": [[{"a": i}] for i in range(300)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    whole, random = (tmp_path / "x.parquet").read_bytes(), Random(0)
    refusals: list[str] = []
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(random.choice((1, 3, 30))):
            content[random.randrange(random.choice((0, len(whole) - 1200)), len(whole))] = random.randrange(256)
        (tmp_path / "x.parquet").write_bytes(content)
        try:
            assert all(text.encode() for text in texts(tmp_path / "x.parquet"))
        except UserError as error:
            refusals.append(str(error))
    assert 20 < len(refusals) < 200
    assert all(re.fullmatch(r".*x\.parquet.*", line) for line in refusals)


@pytest.mark.parametrize("values", [[None, None], []])
def test_a_parquet_file_without_a_text_among_others_is_no_fault(tmp_path: Path, values: list[None]) -> None:
    pq.write_table(pa.table({"text": pa.array(values, pa.null())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "text.a": ["c"]}), tmp_path / "b.parquet")
    assert texts(tmp_path) == ["b"]


@pytest.mark.parametrize("source", ["nonsense://bucket/x.txt", "http://127.0.0.1:9/x.jsonl"])
def test_a_source_that_cannot_be_reached_gets_one_line(source: str) -> None:
    with pytest.raises(UserError, match=r"nonsense|127\.0\.0\.1") as raised:
        texts(source)
    assert "\n" not in str(raised.value)


def test_a_remote_stream_that_breaks_is_taken_up_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(json.dumps({"text": f"line {i} " + "x" * 6000}).encode() + b"\n" for i in range(2000))
    breaks = [1]

    class Flaky(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def do_GET(self) -> None:
            first, last = 0, len(content) - 1
            if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(last, int(wanted[2] or last))
            if first > 0 and breaks and breaks.pop():
                self.send_response(500)
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            with suppress(ConnectionError):  # a client that only asks whether the file is there hangs up
                self.wfile.write(content[first : last + 1])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(documents, "RETRY_SECONDS", (0.0, 0.0))
    try:
        found = [text.split()[1] for text in texts(f"http://127.0.0.1:{server.server_port}/x.jsonl")]
    finally:
        server.shutdown()
        server.server_close()
    assert not breaks
    assert found == [str(i) for i in range(2000)]
