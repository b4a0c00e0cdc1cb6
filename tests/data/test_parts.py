"""A data set made in parts is, byte for byte, the one that a single machine makes; whatever else differs is a line."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrtrain.cli.prepare import main
from lrtrain.data import merge
from lrtrain.data import preparation as preparing
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import prepare
from lrtrain.data.shares import Share, prepare_share, ranges
from lrtrain.data.unfinished import Progress
from parted import in_parts, refused, spec_of
from sources import contents

pytestmark = pytest.mark.usefixtures("small_shards")


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=30), data=st.data())
def test_shares_are_runs_of_files_that_cover_all_and_differ_by_less_than_the_largest_file(
    sizes: list[int], data: st.DataObject
) -> None:
    of = data.draw(st.integers(1, len(sizes)))
    found = ranges(sizes, of)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(sizes)
    assert all(begin < end for begin, end in found)
    if 0 not in sizes:
        most = max(sum(sizes[begin:end]) for begin, end in found)
        assert most <= sum(sizes) / of + 2 * max(sizes)


@pytest.mark.parametrize(("of", "order"), [(1, 1), (3, -1), (7, 1)])
def test_parts_in_any_order_make_the_data_set_of_one_machine(
    tmp_path: Path, text: Path, of: int, order: int, tokenizer: str
) -> None:
    changes = {"train_vocab_size": None, "tokenizer": tokenizer} if of == 3 else {}
    spec = spec_of(text, **changes)
    whole = prepare(spec, str(tmp_path / "whole"))
    assert len(whole.train.chunks) > 10
    out = in_parts(spec, tmp_path / "out", of, order)
    assert merge.merge(str(out), {}) == whole
    assert contents(out) == contents(tmp_path / "whole")
    assert prepare(spec, str(out)) == whole
    assert merge.merge(str(out), {}) == whole
    assert prepare_share(spec, str(out), 0, of) is None


@pytest.mark.parametrize(
    ("limit", "save_seconds"), [(900, 0.0), (20_001, 0.0), ("a part", 0.0), ("all", 0.0), (12_000, 10.0), (10**6, 10.0)]
)
def test_the_token_limit_counts_over_all_parts(
    tmp_path: Path, text: Path, limit: Any, save_seconds: float, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    monkeypatch.setattr(preparing, "SAVE_SECONDS", save_seconds)
    changes = {"train_vocab_size": None, "tokenizer": tokenizer}
    if limit in ("a part", "all"):
        in_parts(spec_of(text, **changes), tmp_path / "unlimited", 3)
        parts = sorted((tmp_path / "unlimited" / "parts").glob("*-of-*"))
        tokens = [share.train.tokens for part in parts if (share := Share.load(part))]
        limit = tokens[0] if limit == "a part" else sum(tokens)
    spec = spec_of(text, **changes, max_tokens=limit)
    prepare(spec, str(tmp_path / "whole"))
    out = in_parts(spec, tmp_path / "out", 3)
    manifest = merge.merge(str(out), {})
    assert contents(out) == contents(tmp_path / "whole")
    assert manifest.train.tokens <= limit


def test_what_is_not_of_the_same_preparation_is_a_line_for_each_part_and_for_the_merge(
    tmp_path: Path, text: Path
) -> None:
    spec, out = spec_of(text), tmp_path / "out"
    refused(lambda: merge.merge(str(out), {}), "holds no parts: run lrtrain prepare --part")
    refused(lambda: prepare_share(spec, str(out), 3, 3), "--part is 3 and --of 3: parts are numbered from 0 to 2")
    refused(lambda: prepare_share(spec, str(out), 0, 8), "the sources have 7 files.*give at most 7")
    refused(lambda: prepare_share(spec, "s3://bucket/x", 0, 3), "name a local folder that all machines share")
    prepare_share(spec, str(out), 1, 3)
    refused(lambda: prepare_share(spec, str(out), 0, 2), "is made in 3 parts, not in 2: give --of 3")
    refused(
        lambda: prepare_share(spec_of(text, val_fraction=0.3), str(out), 0, 3), r"val_fraction is 0\.2 there and 0\.3"
    )
    refused(lambda: merge.merge(str(out), {}), "2 of the 3 parts of .* are missing or not finished: .* for I = 0, 2")
    refused(lambda: prepare(spec, str(out)), "holds parts of a preparation: lrtrain prepare --merge")
    refused(lambda: Manifest.load(str(out)), "not finished: run `lrtrain prepare --merge")
    for number in (0, 2):
        prepare_share(spec, str(out), number, 3)
    refused(lambda: merge.merge(str(out), {"max_tokens": 7}), "max_tokens is None there and 7")
    refused(lambda: merge.merge(str(out), {}, workers=-1), "workers is -1: give at least 1")
    with (text / "3.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    for call in (lambda: prepare_share(spec, str(out), 1, 3), lambda: merge.merge(str(out), {})):
        refused(call, r"the sources have changed since the first part .*3\.jsonl has changed")
    assert not (out / "train").exists()


def test_another_tokenizer_under_the_same_name_is_a_line(tmp_path: Path, text: Path, tokenizer: str) -> None:
    own = tmp_path / "own.json"
    shutil.copy(tokenizer, own)
    spec = spec_of(text, train_vocab_size=None, tokenizer=str(own))
    prepare_share(spec, str(tmp_path / "out"), 0, 2)
    own.write_text(own.read_text().replace("<|endoftext|>", "</s>"))
    refused(lambda: prepare_share(spec, str(tmp_path / "out"), 1, 2), r"tokenizer \S*own.json has changed")


def test_parts_and_one_machine_do_not_take_each_others_folder(tmp_path: Path, text: Path) -> None:
    (tmp_path / "mine" / "train").mkdir(parents=True)
    refused(lambda: prepare_share(spec_of(text), str(tmp_path / "mine"), 0, 2), "is not from a preparation")
    (tmp_path / "begun").mkdir()
    Progress({}, []).save(tmp_path / "begun")
    refused(
        lambda: prepare_share(spec_of(text), str(tmp_path / "begun"), 0, 2), "unfinished preparation of one machine"
    )
    prepare(spec_of(text), str(tmp_path / "whole"))
    other = spec_of(text, val_fraction=0.3)
    refused(lambda: prepare_share(other, str(tmp_path / "whole"), 0, 2), "holds a data set of another request")


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_a_damaged_part_is_named_and_can_be_made_again(tmp_path: Path, text: Path, damage: str) -> None:
    out = in_parts(spec_of(text), tmp_path / "out", 2)
    chunk = out / "parts" / "00001-of-00002" / "train" / "chunk-00002.bin"
    content = chunk.read_bytes()
    chunk.unlink() if damage == "missing" else chunk.write_bytes(content[:-1] + b"?")
    refused(lambda: merge.merge(str(out), {}), rf"chunk-00002\.bin is {damage}.*delete \S*00001-of-00002 and run")
    shutil.rmtree(chunk.parents[1])
    prepare_share(spec_of(text), str(out), 1, 2)
    merge.merge(str(out), {})
    prepare(spec_of(text), str(tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")


def test_a_merge_says_beforehand_that_the_disk_is_too_small(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = in_parts(spec_of(text), tmp_path / "out", 2)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    refused(lambda: merge.merge(str(out), {}), r"merging needs \S+ GB more in \S+, where 0\.0 GB are free")
    assert not (out / "train").exists()


def test_a_merge_that_was_killed_while_it_deleted_the_parts_is_whole(tmp_path: Path, text: Path) -> None:
    out = in_parts(spec_of(text), tmp_path / "out", 2)
    shutil.copytree(out / "parts", tmp_path / "kept")
    manifest = merge.merge(str(out), {})
    shutil.copytree(tmp_path / "kept" / "00001-of-00002", out / "parts" / "00001-of-00002")
    assert prepare(spec_of(text), str(out)) == manifest
    assert merge.merge(str(out), {}) == manifest
    assert not (out / "parts").exists()


def test_the_command_makes_parts_and_merges_them(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    request = [*out, "--source", str(text), "--train-vocab-size", "300"]
    for flags in (["--part", "0"], ["--of", "2"], ["--merge", "--part", "0", "--of", "2"]):
        refused(lambda flags=flags: main([*request, *flags]), "give --part I and --of N together, or --merge alone")
    for number in "01":
        assert main([*request, "--part", number, "--of", "2"]) == 0
    assert "a second and core" in capsys.readouterr().out
    refused(lambda: main([*request, "--merge", "--val-fraction", "0.5"]), r"val_fraction is 0\.05 there and 0\.5")
    assert main([*request, "--merge"]) == 0
    said = capsys.readouterr().out
    assert main([*out, "--merge"]) == 0
    assert said.splitlines()[1:3] == capsys.readouterr().out.splitlines()[1:3]
