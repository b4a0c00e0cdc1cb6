"""Sources: a name, a folder and a glob mean the same files; none is lost or comes twice; what is left out is said."""

import bz2
import lzma
import os
import re
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lrtrain.cli.prepare import main
from lrtrain.data.documents import read_documents
from lrtrain.data.listing import HIDDEN, NO_FORMAT, OWN, TWICE, Listing, list_sources
from lrtrain.runtime.errors import UserError


def texts(*sources: str | Path) -> list[str]:
    return [d.text for part in list_sources(map(str, sources)).parts for d in read_documents(part)]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(Path(name).name)


def left_out(listing: Listing) -> dict[str, list[str]]:
    return {reason: sorted(Path(name).name for name in names) for reason, names in listing.left_out.items()}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A snapshot as a hub's cache has it: files and a folder are links."""
    write(tmp_path / "blobs", "b1", "b2")
    write(tmp_path / "elsewhere", "below.txt")
    snapshot = tmp_path / "snapshot"
    write(snapshot, "b0.txt")
    for number in (1, 2):
        (snapshot / f"b{number}.txt").symlink_to(f"../blobs/b{number}")
    (snapshot / "linked").symlink_to("../elsewhere")
    return snapshot


@pytest.mark.parametrize("entry", ["", "/", "/*", "/**", "/**/*", "/**/*.txt", "/[bl]*"])
def test_linked_files_and_folders_are_read_however_they_are_named(cache: Path, entry: str) -> None:
    assert texts(f"{cache}{entry}") == ["b0.txt", "b1", "b2", "below.txt"]


def test_names_a_folder_and_a_glob_give_the_same_files(tmp_path: Path) -> None:
    write(tmp_path / "c", "a.txt", "b.md", "sub/c.txt", ".hidden.txt", ".git/description.txt", "we[1]rd.txt")
    every = ["a.txt", "b.md", "c.txt", "we[1]rd.txt"]
    names = sorted(str(path) for path in (tmp_path / "c").iterdir() if not path.name.startswith("."))
    for sources in ([tmp_path / "c"], [f"{tmp_path}/c/*"], [f"{tmp_path}/*"], names, [f"file://{tmp_path}/c"]):
        assert texts(*sources) == every
    assert texts(f"{tmp_path}/c/.*") == ["description.txt", ".hidden.txt"]
    assert left_out(list_sources([str(tmp_path / "c")])) == {HIDDEN: [".git", ".hidden.txt"]}


def test_no_file_comes_twice_under_any_name(tmp_path: Path) -> None:
    write(tmp_path, "c/a.txt", "d/e.txt")
    (tmp_path / "c" / "link.txt").symlink_to("a.txt")
    os.link(tmp_path / "c" / "a.txt", tmp_path / "c" / "other.txt")
    (tmp_path / "c" / "up").symlink_to("..")
    assert texts(tmp_path / "c", f"{tmp_path}/c/*.txt", f"{tmp_path}/c/../c/a.txt", tmp_path) == ["a.txt", "e.txt"]
    listing = list_sources([str(tmp_path / "c")])
    assert left_out(listing) == {TWICE: ["c", "link.txt", "other.txt"]}


def test_links_in_circles_end(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    for name in ("one", "two", "three"):
        (tmp_path / name).symlink_to(".")
    assert texts(f"{tmp_path}/**/*.txt") == texts(tmp_path) == ["a.txt"]


def test_files_of_unknown_suffix_are_counted_in_a_folder_and_read_when_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "c", "a.txt", "b.log", "c.tokens", ".d.txt")
    (tmp_path / "c" / "a.txt").write_text("\n\n".join(f"{n} " * 3000 for n in range(100)))
    arguments = ["--out", str(tmp_path / "c" / "out"), "--train-vocab-size", "257", "--source"]
    assert main([*arguments, str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"Left out: 1 hidden \(\S*/\.d\.txt\), 2 of unknown suffix \(\S*b\.log, \S*c\.tokens\), 1 of", said
    )
    listing = list_sources([f"{tmp_path}/c/*.log", str(tmp_path / "c")], out=tmp_path / "c" / "out")
    assert re.fullmatch(r"Read as text, whatever the suffix: \S*b\.log", listing.remarks()[-1])
    assert left_out(listing)[OWN] == ["out"]
    write(tmp_path / "only", "a.csv")
    with pytest.raises(UserError, match=r"has no \.txt .*Left out: 1 of unknown suffix .*a\.csv"):
        list_sources([str(tmp_path / "only")])


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_the_same_rule_holds_on_other_file_systems(monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    info = MemoryFileSystem.info

    def refuse(self: MemoryFileSystem, path: str, **rest: object) -> dict[str, object]:
        if "*" in path:  # a store without permission to list tells no more
            raise error(path)
        return info(self, path, **rest)

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    memory = fsspec.filesystem("memory")
    for name in ("a.txt", "sub/b.txt", ".hidden.txt", ".git/x.txt", "p.png", "sub/.c.txt"):
        with memory.open(f"/listing/{name}", "wb") as out:
            out.write(name.encode())
    for entry in ("", "/", "/**/*.txt", "/[as]*"):
        assert texts(f"memory://listing{entry}") == ["a.txt", "sub/b.txt"]
    names = {HIDDEN: [".c.txt", ".hidden.txt", "x.txt"], NO_FORMAT: ["p.png"]}
    assert left_out(list_sources(["memory://listing"])) == names


def test_a_page_of_the_web_is_a_folder_and_a_query_is_no_suffix(tmp_path: Path) -> None:
    write(tmp_path, "c/a.txt", "c/sub/b.txt", "c/.hidden.txt", "c/p.png")
    (tmp_path / "c" / "x.jsonl").write_text('{"text": "x"}')

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/c"
        assert texts(url) == texts(f"{url}/") == ["a.txt", "b.txt", "x"]
        assert texts(f"{url}/x.jsonl?download=true", f"{url}/a.txt") == ["x", "a.txt"]
        assert left_out(list_sources([url])) == {HIDDEN: [".hidden.txt"], NO_FORMAT: ["p.png"]}
        server.shutdown()


def test_a_file_inside_an_archive_keeps_the_archive_in_its_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/one.txt", "one")
        archive.writestr("a/two.txt", "two")
    assert texts(f"zip://a/*.txt::{tmp_path}/a.zip") == texts(f"zip://a::{tmp_path}/a.zip") == ["one", "two"]


@pytest.mark.parametrize("name", ["with space.txt", "a#b?c.txt", "a::b.txt", "~.txt", "[x].txt", "Ü.TXT"])
def test_a_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    assert texts(tmp_path / name) == texts(tmp_path) == [name]


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_further_compressions_are_undone_over_several_frames(tmp_path: Path, suffix: str) -> None:
    compress = {".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    (tmp_path / f"x.jsonlines{suffix}").write_bytes(compress(b'{"text": "a"}\n{"te') + compress(b'xt": "b"}\n'))
    assert texts(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.symlink_to("nowhere"), "x.txt is a link that leads nowhere"),
        (lambda file: file.symlink_to("x.txt"), "x.txt is a link that leads nowhere"),
        (os.mkfifo, "x.txt is a pipe or a device"),
        (lambda file: None, "matches no file"),
    ],
)
def test_what_cannot_be_read_again_is_refused_in_a_folder_as_by_name(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "x.txt")
    for entry in (tmp_path, tmp_path / "x.txt", tmp_path / "*.txt"):
        with pytest.raises(UserError, match=words):
            list_sources([str(entry)])
