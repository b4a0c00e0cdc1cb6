"""`lrtrain import --rank`, `--rank-ratio`, `--energy`: the nearest factors, and what they lose."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import llama_folder
from import_command import imported, refused
from lrtrain.cli.main import main
from lrtrain.nn import DenseLinear, LowRankLinear, SpectralLinear, projections


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Llama with grouped heads."""
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    llama_folder.save(folder)
    return folder


def lost(weight: Tensor, rank: int) -> float:
    squares = torch.linalg.svdvals(weight.double()) ** 2
    return float(squares[rank:].sum() / squares.sum())


@pytest.mark.parametrize(
    ("flags", "parts", "kind", "ranks"),
    [
        (["--rank", "30"], ("attention", "mlp"), LowRankLinear, {"query": 30, "key": 24, "up": 30, "down": 30}),
        (["--rank", "5", "--parts", "mlp", "--kind", "spectral"], ("mlp",), SpectralLinear, {"up": 5, "down": 5}),
        (["--rank-ratio", "0.5"], ("attention", "mlp"), LowRankLinear, {"query": 24, "key": 24, "up": 24, "down": 40}),
        (["--energy", "0.5", "--parts", "attention"], ("attention",), LowRankLinear, {}),
        (["--energy", "0.6", "--kind", "spectral"], ("attention", "mlp"), SpectralLinear, {}),
    ],
    ids=["rank", "spectral mlp", "ratio", "attention by energy", "spectral by energy"],
)
def test_projections_become_the_nearest_factors_and_the_table_says_what_is_lost(
    flags: list[str],
    parts: tuple[str, ...],
    kind: type,
    ranks: dict[str, int],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dense = projections(imported(source, tmp_path))
    (tmp_path / "second").mkdir()
    made = projections(imported(source, tmp_path / "second", *flags))
    said = capsys.readouterr().out
    table = [line.split() for line in said.splitlines() if re.match(r"(layer|[01])  ", line)]
    assert {one.rpartition(".")[2] for one in made if one.split(".")[2] in parts} == set(table[0][1:])
    for name, one in made.items():
        weight = dense[name].weight.detach()
        if name.split(".")[2] not in parts:
            assert torch.equal(one.weight, weight)
            continue
        assert type(one) is kind
        rank, last = one.rank, name.rpartition(".")[2]
        assert rank == ranks.get(last, rank)
        left = float((weight - one.materialize()).double().square().sum() / weight.double().square().sum())
        assert left == pytest.approx(lost(weight, rank), rel=1e-3, abs=1e-6)
        if "--energy" in flags:
            energy = float(flags[1])
            assert lost(weight, rank) <= 1 - energy < lost(weight, rank - 1)
        row = next(row for row in table if row[0] == name.split(".")[1])
        cells = [cell for cell in " ".join(row[1:]).split(" %") if cell]
        cell = cells[table[0].index(last) - 1]
        assert cell.strip() == (f"{rank}: " if "--energy" in flags else "") + f"{100 * left:.2f}"


def test_what_would_be_more_numbers_stays_dense_where_the_energy_chooses_the_rank(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {name: type(one) for name, one in projections(imported(source, tmp_path, "--energy", "0.88")).items()}
    assert {*kinds.values()} == {DenseLinear, LowRankLinear}
    said = capsys.readouterr().out
    assert said.count(" dense") == [*kinds.values()].count(DenseLinear)
    before, after = re.search(r"numbers +([\d,]+) → ([\d,]+)\n", said).groups()
    assert int(after.replace(",", "")) < int(before.replace(",", ""))
    line = refused(source, tmp_path, capsys, "--energy", "1")
    assert line == "--energy 1: no projection would have fewer numbers than its dense weight; give less"


def test_the_export_of_factors_says_where_they_are_from(source: Path, tmp_path: Path) -> None:
    imported(source, tmp_path, "--rank", "8")
    out = ["--out", str(tmp_path / "again"), "--factorized", "--dtype", "bfloat16"]
    assert main(["export", str(tmp_path / "model.ckpt"), *out]) == 0
    card = (tmp_path / "again/README.md").read_text()
    assert "read and written again by lrtrain with its projections as factors." in card
    found = re.search(r"\| factorized \| (.*) \|", card)[1]
    expected = r"14 of 14 projections of attention and mlp low-rank, rank 8, \d\d\.\d\d% of their energy lost"
    assert re.fullmatch(expected, found)
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert {*config["low_rank"].values()} == {8}
