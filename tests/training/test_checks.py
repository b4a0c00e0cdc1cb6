"""What cannot train low-rank weights on several processes is refused in a line, which one of them says."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

import toy
from commandline import RECIPE, arguments, refusal
from lrtrain.config.train_parser import TrainingRun
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.ranks import decide_on_rank_zero
from lrtrain.training.checks import check_strategy
from lrtrain.training.fsdp import FSDP
from ranks import command_on_ranks, on_ranks

PARALLEL = RECIPE.parent / "parallel"
TENSOR_PARALLEL = """
trainer:
  strategy:
    class_path: lightning.pytorch.strategies.ModelParallelStrategy
    init_args: {data_parallel_size: 1, tensor_parallel_size: 2}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_3"])
def test_lightnings_flattening_strategies_are_refused_with_the_reason_and_the_way_out(
    name: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(["fit", *arguments(shards, tmp_path, f"--trainer.strategy={name}")], capsys)
    assert line.startswith(f"trainer.strategy is {name}: ")
    assert "flattens weights into vectors" in line
    assert "configs/parallel/fsdp.yaml" in line
    assert not list(tmp_path.iterdir())


def test_tensor_parallelism_is_refused_with_the_reason(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensor.yaml").write_text(TENSOR_PARALLEL)
    fit = ["fit", *arguments(shards, tmp_path / "runs", "--config", str(tmp_path / "tensor.yaml"))]
    assert "may cut a matrix by columns, and a Gram matrix is a sum over rows" in refusal(fit, capsys)


def test_a_class_as_text_is_refused_with_the_way_to_name_it(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", *arguments(shards, tmp_path, "--trainer.strategy=lrtrain.training.FSDP")]
    assert "name a class in YAML" in refusal(fit, capsys)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "transformer-engine"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_weights_of_16_bits_are_refused_with_the_reason(
    command: str, precision: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal([command, *arguments(shards, tmp_path, f"--trainer.precision={precision}")], capsys)
    assert line.startswith(f"trainer.precision is {precision}: ")
    assert "use bf16-mixed" in line
    assert not list(tmp_path.iterdir())


def test_a_plan_does_not_know_weights_of_16_bits(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["plan", "--config", str(RECIPE), "--trainer.precision=bf16-true"], capsys)
    assert line.startswith("trainer.precision is bf16-true: a plan knows 32-true")


def test_a_plugin_that_keeps_weights_in_16_bits_is_refused(shards: Path, tmp_path: Path) -> None:
    run = TrainingRun("fit", arguments(shards, tmp_path))
    trainer = Trainer(accelerator="cpu", plugins=[HalfPrecision("bf16-true")], max_steps=1, logger=False)
    with pytest.raises(UserError, match="precision is bf16-true"):
        trainer.fit(run.model, datamodule=run.datamodule)


def test_what_keeps_matrices_is_taken() -> None:
    for strategy in ("auto", "ddp", DDPStrategy(), SingleDeviceStrategy(), FSDP()):
        check_strategy(strategy)
    for refused in (FSDPStrategy(), ModelParallelStrategy(2, 1)):
        with pytest.raises(UserError, match=type(refused).__name__):
            check_strategy(refused)


@pytest.mark.parametrize(
    ("sizes", "processes", "said"),
    [
        ({"shards": 2, "replicas": 2}, 2, "2 replicas of 2 shards do not fit 2 processes"),
        ({"replicas": 3}, 4, "3 replicas do not fit 4 processes"),
        ({"shards": 0}, 1, "trainer.strategy.shards is 0: give at least 1"),
        ({"replicas": 0}, 1, "trainer.strategy.replicas is 0: give at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_processes_is_refused(
    sizes: dict[str, int], processes: int, said: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--trainer.strategy.init_args.{name}={size}" for name, size in sizes.items()]
    more = ["--config", str(PARALLEL / "fsdp.yaml"), f"--trainer.devices={processes}", *flags]
    assert said in refusal(["fit", *arguments(shards, tmp_path, *more)], capsys)


def test_a_mistake_is_told_once_whatever_the_number_of_processes(shards: Path, tmp_path: Path) -> None:
    fit = ["fit", *arguments(shards, tmp_path, "--config", str(PARALLEL / "fsdp.yaml"))]
    before, meeting, after = ["--trainer.max_steps=0"], ["--ckpt_path=nowhere"], ["--model.decoder.vocab_size=299"]
    text = shards.parent / "text.jsonl"
    os.utime(text, (1, 1))  # the first process alone compares the sources
    spec = {"source": [str(text)], "train_vocab_size": 300, "val_fraction": 0.2}
    preparing = [f"--data.prepare={json.dumps(spec)}"]
    for mistake in (before, meeting, preparing, after):
        outcomes = command_on_ranks(2, [*fit, *mistake])
        assert [code for code, _, _ in outcomes] == [2, 2], outcomes
        lines = [line for _, _, err in outcomes for line in err.splitlines() if line.startswith("lrtrain: error")]
        assert len(lines) == 1, outcomes
    assert not list(tmp_path.iterdir())


def test_what_the_first_process_decides_holds_for_all() -> None:
    assert on_ranks(3, _decide_twice) == [[[0, 10], [0, 20]]] * 3


def _decide_twice() -> list[Any]:
    rank = int(os.environ["RANK"])
    return [decide_on_rank_zero(lambda number=number: [rank, number]) for number in (10, 20)]


def test_a_slurm_job_decides_at_the_address_where_torch_connects() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    assert on_ranks(2, _decide_under_slurm, port) == [[0, 2.0], [0, 2.0]]


def _decide_under_slurm(port: str) -> list[Any]:
    rank = os.environ["RANK"]
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "MASTER_", "RANK", "WORLD", "LOCAL"))]:
        del os.environ[name]
    os.environ |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    os.environ |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1", "SLURM_STEP_ID": "0"}
    os.environ |= {"MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    decided = decide_on_rank_zero(lambda: int(rank))
    torch.distributed.init_process_group("gloo", rank=int(rank), world_size=2)
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    return [decided, float(total)]


def test_a_process_alone_settles_by_itself() -> None:
    assert decide_on_rank_zero(lambda: "alone") == "alone"
