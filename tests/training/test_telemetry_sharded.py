"""The telemetry on weights whose rows are spread over processes: every process gets what the whole weights give."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import SGD

from lrtrain.nn import DenseLinear, LowRankLinear, SpectralLinear
from lrtrain.training.telemetry import Telemetry
from ranks import on_ranks
from sharded_runs import run

Figures = dict[str, dict[str, float]]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    low_rank, spectral = LowRankLinear(11, 4, rank=2), SpectralLinear(4, 9, rank=3)
    return nn.Sequential(low_rank, spectral, DenseLinear(9, 5), DenseLinear(5, 7))


def figures_of(layers: nn.Sequential, spread: bool) -> Figures:
    """A step along fixed directions; on three processes no factor divides, and some have an empty share."""
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator) for p in layers.parameters()]
    x = torch.randn(6, 11, generator=generator)
    telemetry = Telemetry(layers, ["*"])
    telemetry.probe(lambda: layers(x))
    if spread:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in layers:
            for name, p in list(layer.named_parameters()):
                setattr(layer, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None)))
        directions = [distribute_tensor(d, mesh, [Shard(0)], src_data_rank=None) for d in directions]
    telemetry.before_step(SGD(layers.parameters(), lr=0.1))
    with torch.no_grad():
        for p, direction in zip(layers.parameters(), directions, strict=True):
            p.add_(direction, alpha=0.01)
    return telemetry.after_step()


def measure() -> tuple[Figures, Figures]:
    dist.init_process_group("gloo")
    return figures_of(model(), spread=False), figures_of(model(), spread=True)


def test_rows_on_three_processes_give_what_the_whole_weights_give() -> None:
    outcomes = on_ranks(3, measure)
    whole, spread = outcomes[0]
    assert [len(found) for found in spread.values()] == [10, 9, 8, 8]
    for name, expected in whole.items():
        assert spread[name] == pytest.approx(expected, rel=1e-6, abs=1e-7), name
    assert all(outcome[1] == spread for outcome in outcomes)


def test_a_sharded_run_measures_what_one_process_does_and_the_same_on_all(tmp_path: Path) -> None:
    one = on_ranks(1, run, tmp_path / "one", "mixed", "single", 6)[0]["measured"]
    first, second = (outcome["measured"] for outcome in on_ranks(2, run, tmp_path / "two", "mixed", "fsdp", 6))
    assert first == second
    assert first.keys() == one.keys()
    # The probe is the first process's share of the batch, which is another one here.
    compared = [key for key in one if not key.endswith(("output_change_rms", "orthonormality_error"))]
    assert len(compared) > 20
    assert {key: first[key] for key in compared} == pytest.approx({key: one[key] for key in compared}, rel=1e-3)
    assert all(first[key] > 0 for key in first if key.endswith("output_change_rms"))
