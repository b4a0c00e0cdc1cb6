"""Several data sets by weight: each in its own order, its share at every place, resumed exactly, one tokenizer."""

import copy
import itertools
import json
import random
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrtrain.data import shards
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.mix import Weighted, bytes_per_token
from lrtrain.data.mixed_loader import MixedLoader
from lrtrain.data.order import Quotas
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.runtime.errors import UserError
from recorded_fit import fit
from token_streams import BLOCK, CHUNK, MADE, blocks_of, end_workers, first, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)
Rows = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def small(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller data set with the tokenizer of `prepared`, of three chunks."""
    folder, draw = tmp_path_factory.mktemp("small"), random.Random(1)
    texts = [" ".join(str(draw.randrange(10**6)) for _ in range(30)) for _ in range(60)]
    (folder / "y.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_TOKENS", CHUNK)
        spec = PrepareSpec([f"{folder}/y.jsonl"], tokenizer=str(prepared), val_fraction=0.2)
        prepare(spec, str(folder / "small"))
    return folder / "small"


@pytest.fixture
def both(prepared: Path, small: Path) -> list[Weighted]:
    return [Weighted(str(prepared), 0.7, "large"), Weighted(str(small), 0.3)]


def mixed(mix: list[Weighted], **options: Any) -> TokenDataModule:
    data = TokenDataModule(mix=mix, **{"block_size": BLOCK, "batch_size": 4, **options})
    data.prepare_data()
    data.setup("fit")
    MADE.append(data)
    return data


def alone(path: Path, count: int, **options: Any) -> Rows:
    data = TokenDataModule(str(path), **{"block_size": BLOCK, "batch_size": 4, **options})
    data.setup("fit")
    return first(count, data)


def test_each_source_has_its_share_and_its_own_order(prepared: Path, small: Path, both: list[Weighted]) -> None:
    data = mixed(both, seed=3)
    stream = first(600, data)
    quotas = Quotas([Fraction(7, 10), Fraction(3, 10)])
    assert quotas.counts(600) == [420, 180]
    for source, path in enumerate((prepared, small)):
        own = [block for n, block in enumerate(stream) if quotas.source(n) == source]
        assert own == alone(path, len(own), seed=3)
    epoch = len(blocks_of(small, "train"))
    assert 40 < epoch < 180  # it was read more than once
    assert data.source_epochs == {"large": 420 / 693, "small": 180 / epoch}
    assert data.epochs_seen == 0.0  # without a Trainer there is no epoch


def test_a_mix_of_one_is_that_data_set(prepared: Path) -> None:
    assert first(800, mixed([Weighted(str(prepared), 5.0)])) == alone(prepared, 800)


def test_weights_are_relative_and_batches_and_workers_change_nothing(both: list[Weighted]) -> None:
    stream = first(300, mixed(both))
    percent = [Weighted(one.path, 100 * one.weight, one.name) for one in both]
    assert first(300, mixed(percent, batch_size=7, num_workers=2)) == stream
    other = [Weighted(one.path, 1.0, one.name) for one in both]
    assert first(300, mixed(other)) != stream


Grid = tuple[int, int]  # processes, blocks a batch


def read(data: TokenDataModule, grid: Grid, batches: int, state: Any) -> tuple[Rows, Any]:
    """What the processes of a grid read in so many batches, batch by batch, and the state that all save alike."""
    found, states = [], []
    for rank in range(grid[0]):
        loader = MixedLoader(data.sources, BLOCK + 1, grid[1], rank=rank, processes=grid[0])
        if state is not None:
            loader.load_state_dict(copy.deepcopy(state))
        found.append([rows([batch]) for batch in itertools.islice(loader, batches)])
        states.append(copy.deepcopy(loader.state_dict()))
    assert all(state == states[0] for state in states)
    return [row for together in zip(*found, strict=True) for part in together for row in part], states[0]


@settings(max_examples=8)
@given(grids=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([3, 4, 8])), min_size=2, max_size=4), draw=st.data())
def test_the_stream_goes_on_however_often_the_processes_change(
    prepared: Path, small: Path, grids: list[Grid], draw: st.DataObject
) -> None:
    data = mixed([Weighted(str(prepared), 2.0), Weighted(str(small), 1.0)])
    seen: Rows = []
    state = None
    for grid in grids:
        part, state = read(data, grid, draw.draw(st.integers(0, 30)), state)
        seen += part
    assert seen == first(len(seen), data)


def test_a_trainer_resumed_sees_the_rest_of_the_stream(both: list[Weighted], tmp_path: Path) -> None:
    def data() -> TokenDataModule:
        return TokenDataModule(mix=both, block_size=BLOCK, batch_size=16)

    seen = fit(tmp_path, data(), 5).seen + fit(tmp_path, data(), 9, str(tmp_path / "5.ckpt")).seen
    assert seen == first(9 * 16, mixed(both))


@pytest.mark.parametrize("change", ["weights", "shards", "seed"])
def test_another_mix_than_the_checkpoints_is_a_line_and_begins_anew(
    both: list[Weighted], small: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = mixed(both)
    first(40, data)
    assert data._training is not None
    state = data._training.state_dict()
    large = both[0]
    changed = {
        "weights": mixed([large, Weighted(str(small), 0.5)]),
        "shards": mixed([Weighted(str(small), 0.7), Weighted(large.path, 0.3)]),
        "seed": mixed(both, seed=1),
    }[change]
    assert first(40, changed, state) == first(40, changed)
    assert f"train data is not that of the checkpoint ({change}" in capsys.readouterr().out


def test_held_out_blocks_come_source_by_source(both: list[Weighted], prepared: Path, small: Path) -> None:
    loaders = mixed(both).val_dataloader()
    assert [rows(loader) for loader in loaders] == [blocks_of(path, "val") for path in (prepared, small)]


def test_bytes_per_token_are_the_mean_by_weight(both: list[Weighted]) -> None:
    data = mixed(both)
    large, little = data.sources
    ratios = large.manifest.bytes_per_token(), little.manifest.bytes_per_token()
    assert data.bytes_per_token() == pytest.approx(0.7 * ratios[0] + 0.3 * ratios[1], rel=1e-12)
    assert data.bytes_per_token(source="small") == ratios[1]
    assert bytes_per_token([large], "val") == ratios[0]


def test_a_line_says_how_often_each_source_is_read(
    both: list[Weighted], tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = TokenDataModule(mix=both, block_size=BLOCK, batch_size=4)
    data.trainer = L.Trainer(max_steps=100, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    data.setup("fit")
    line, *held_out = capsys.readouterr().out.splitlines()
    times = 0.3 * 400 / len(blocks_of(small, "train"))
    assert line.startswith("data.mix: large 70.0% (")
    assert line.endswith(f"read {times:.2f} times in this run)")
    assert [line.partition(":")[0] for line in held_out] == ["held-out data of large", "held-out data of small"]


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ([], r"data\.mix is empty"),
        ([("a", 0.0)], r"data\.mix\[0\]\.weight \(a\) is 0\.0: give a number above 0"),
        ([("a", 1.0), ("b", -1.0)], r"data\.mix\[1\]\.weight \(b\) is -1\.0"),
        ([("a", float("nan"))], "is nan"),
        ([("x/a", 1.0), ("x/a/", 2.0)], r"names x/a 2 times: name it once"),
        ([("x/a", 1.0), ("y/a", 2.0)], r"has a twice.*name: …"),
        ([("a", 1.0, "a b")], r"data\.mix\[0\]\.name is 'a b'"),
        ([("a", 1.0, "")], r"name is ''"),
    ],
)
def test_a_mix_that_cannot_be_meant_gets_one_line(mix: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        TokenDataModule(mix=[Weighted(*one) for one in mix])
    assert "\n" not in str(raised.value)


def test_a_path_and_a_mix_are_not_both_taken_nor_neither() -> None:
    one = [Weighted("a", 1.0)]
    for given_both in ({}, {"path": "x", "mix": one}):
        with pytest.raises(UserError, match=r"exactly one of data\.path and data\.mix"):
            TokenDataModule(**given_both)
    with pytest.raises(UserError, match=r"data\.prepare makes one data set"):
        TokenDataModule(mix=one, prepare=PrepareSpec(train_vocab_size=300))


def test_data_sets_of_two_tokenizers_are_refused(prepared: Path, tmp_path: Path) -> None:
    spec = PrepareSpec([str(prepared.parent / "x.jsonl")], train_vocab_size=290, val_fraction=0.2)
    prepare(spec, str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"has the tokenizer \w{8} and \S*other \w{8}: prepare all with one"):
        mixed([Weighted(str(prepared), 1.0), Weighted(str(tmp_path / "other"), 1.0)])
    manifest = json.loads((prepared / "manifest.json").read_text())
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "manifest.json").write_text(json.dumps({**manifest, "dtype": "int32"}))
    with pytest.raises(UserError, match=r"has the dtype uint16 and \S*wide int32"):
        mixed([Weighted(str(prepared), 1.0), Weighted(str(tmp_path / "wide"), 1.0)])
    with pytest.raises(UserError, match=r"absent holds no prepared data"):
        mixed([Weighted(str(prepared), 1.0), Weighted(str(tmp_path / "absent"), 1.0)])


def test_one_data_set_under_two_paths_is_refused(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(prepared)
    with pytest.raises(UserError, match=r"link hold the same shards: name them once"):
        mixed([Weighted(str(prepared), 1.0), Weighted(str(tmp_path / "link"), 1.0)])


def test_a_damaged_source_is_named_during_training(prepared: Path, small: Path, tmp_path: Path) -> None:
    copy_of = Path(shutil.copytree(small, tmp_path / "copy"))
    loader = mixed([Weighted(str(prepared), 1.0), Weighted(str(copy_of), 1.0)]).train_dataloader()
    chunk = copy_of / "train" / "chunk-00001.bin"
    chunk.write_bytes(b"\xff" * chunk.stat().st_size)
    with pytest.raises(UserError, match=r"copy/train/chunk-00001\.bin is corrupt"):
        rows(itertools.islice(loader, 200))
