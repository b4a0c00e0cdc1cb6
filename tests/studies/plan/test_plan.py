"""`lrtrain plan`: the papers' figures, FLOPs by formula against counted ones, and what bad input gets."""

import inspect
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.flop_counter import FlopCounterMode

from commandline import RECIPE, refusal
from lrtrain.checkpoint.checkpoints import Checkpoints
from lrtrain.cli.main import main
from lrtrain.config.export_settings import Export
from lrtrain.config.plan_parser import GROUPS, parse, signature
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.linalg import flops, orthonormalize, polar
from lrtrain.optim import Optimizers, Spectron, Stiefel, build_optimizer
from lrtrain.studies.plan.optimizer_step import slot_bytes
from lrtrain.studies.plan.parameters_and_flops import parameters_by_kind
from lrtrain.studies.plan.plan_settings import Layout, layouts, read_run
from lrtrain.studies.plan.planned_model import model_of
from lrtrain.studies.plan.sct_memory import PUBLISHED, sct_memory
from lrtrain.training.callbacks.heartbeat import Heartbeat
from lrtrain.training.callbacks.nonfinite import NonFiniteGradients
from lrtrain.training.causal_lm import CausalLM

CONFIGS = RECIPE.parent
TOY = ["--model.decoder.width=64", "--model.decoder.heads=2", "--model.decoder.ffn_width=96", "--data.block_size=32"]


def planned(tmp_path: Path, *argv: str) -> dict[str, Any]:
    file = tmp_path / "plan.json"
    assert main(["plan", *argv, "--json", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("size", "dense", "factorized"), [("S", "134.11", "93.60"), ("M", "488.30", "296.93"), ("L", "777.86", "453.85")]
)
def test_the_sizes_are_the_papers(size: str, dense: str, factorized: str) -> None:
    kinds = parameters_by_kind(model_of(*parse(["--config", str(CONFIGS / f"spectron_{size}.yaml")])).decoder)
    assert f"{sum(kind.parameters for kind in kinds) / 1e6:.2f}" == factorized
    assert f"{sum(kind.dense for kind in kinds) / 1e6:.2f}" == dense


@pytest.mark.parametrize(
    ("name", "dense", "spectral", "ratio"),
    [
        ("SmolLM2-135M", "14.156", "1.082", "13.08"),
        ("SmolLM2-1.7B", "268.435", "5.243", "51.20"),
        ("LLaMA-7B", "721.420", "7.734", "93.28"),
        ("Qwen-27B", "1140.851", "11.011", "103.61"),
        ("LLaMA-70B", "3758.096", "18.875", "199.11"),
    ],
)
def test_the_sct_table_is_the_papers(
    name: str, dense: str, spectral: str, ratio: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--sct-memory"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(name))
    m, n = PUBLISHED[name]
    assert line.split()[1:] == [str(m), "×", str(n), dense, spectral, ratio]


def test_a_spectral_matrix_takes_what_its_parameters_take() -> None:
    from lrtrain.nn import SpectralLinear

    layer = SpectralLinear(48, 20, rank=4)
    assert sct_memory(48, 20, 4).spectral == 16 * sum(p.numel() for p in layer.parameters())


def test_one_block_copied_is_the_decoder_that_training_makes() -> None:
    arguments = ["--config", str(RECIPE), *TOY]
    with torch.device("meta"):
        parser, config = parse(arguments)
        whole = parser.instantiate(config).model.decoder()
    quick = model_of(*parse(arguments)).decoder
    shapes = [[(name, p.shape) for name, p in decoder.named_parameters()] for decoder in (whole, quick)]
    assert shapes[0] == shapes[1]


def test_the_keys_are_those_of_fit() -> None:
    for owner, place in zip(
        (Trainer, CausalLM, TokenDataModule, Checkpoints, NonFiniteGradients, Heartbeat, Export),
        GROUPS.values(),
        strict=True,
    ):
        wanted = inspect.signature(owner.__init__).parameters.values()
        plain = {p.name: p.default for p in wanted if p.name not in ("self", "args", "kwargs")}
        found = signature(*place)
        assert list(found) == list(plain)
        literals = {name: value for name, value in plain.items() if isinstance(value, bool | int | float | str)}
        assert {name: found[name] for name in literals} == literals


def test_callbacks_may_be_added_to_those_of_an_overlay(tmp_path: Path) -> None:
    added = tmp_path / "added.yaml"
    added.write_text("trainer:\n  callbacks+:\n    - class_path: lrtrain.training.SpectralTelemetry\n")
    files = [RECIPE, CONFIGS / "methods" / "ortho_only.yaml", added]
    _, config = parse([part for file in files for part in ("--config", str(file))])
    names = [callback.class_path.rpartition(".")[2] for callback in config.trainer.callbacks]
    assert names == ["SpectralConstraints", "SpectralTelemetry"]


@pytest.mark.parametrize(
    ("flags", "devices", "shards"),
    [
        (["--trainer.devices=2"], 2, None),
        (["--trainer.devices=[0, 1, 3]", "--trainer.num_nodes=2"], 6, None),
        (["--trainer.devices=0,1"], 2, None),
        (["--trainer.devices=3,"], 1, None),
        (["--trainer.devices=auto"], 1, None),
        (["--trainer.devices=-1"], 1, None),
        (["--trainer.strategy=lrtrain.training.FSDP", "--trainer.strategy.shards=2"], 1, 2),
        (["--trainer.strategy={class_path: FSDP, init_args: {shards: 4}}"], 1, 4),
        (["--trainer.strategy=ddp"], 1, None),
    ],
)
def test_devices_and_shards_are_read_in_every_form_that_fit_takes(
    flags: list[str], devices: int, shards: int | None
) -> None:
    run = read_run(parse(["--config", str(RECIPE), *flags])[1])
    assert (run.devices, run.shards) == (devices, shards)


@pytest.mark.parametrize(("devices", "said"), [("auto", True), ("-1", True), ("1", False)])
def test_devices_that_the_machine_decides_are_said(
    devices: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", str(RECIPE), f"--trainer.devices={devices}"]) == 0
    assert ("one process a node, where trainer.devices takes as many as there are" in capsys.readouterr().out) is said


@pytest.mark.parametrize("devices", ["0", "-2", "1.5", "[]", "[0, 0]", "two"])
def test_devices_that_are_none_are_refused(devices: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["plan", "--config", str(RECIPE), f"--trainer.devices={devices}"], capsys)
    assert line == f"trainer.devices is {devices}: give a number of processes, a list of devices as [0, 1], or auto"


def test_a_callback_that_fit_refuses_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["plan", "--config", str(RECIPE), "--trainer.callbacks=BatchSizeFinder"], capsys)
    assert line.startswith("trainer.callbacks: BatchSizeFinder trains with another batch than the configuration says")


@pytest.mark.parametrize("value", ["SpectralConstraints", "lrtrain.training.SpectralConstraints"])
def test_constraints_are_read_in_every_form_that_fit_takes(value: str) -> None:
    flags = [f"--trainer.callbacks+={value}", "--trainer.callbacks.constraints=[]", "--trainer.callbacks+=Timer"]
    for part in (flags, flags[:1], flags[:2]):
        run = read_run(parse(["--config", str(RECIPE), *part])[1])
        assert run.constraints == ([] if len(part) > 1 else None)


BARE = """
from torch.optim import SGD
class Bare(SGD):
    def __init__(self, params, lr=0.1, **more):
        super().__init__(params, lr)
"""


def test_an_optimizer_without_annotations_is_planned_as_fit_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_optimizer.py").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    plan = planned(tmp_path, "--config", str(RECIPE), *TOY, "--model.optimizers.hidden=bare_optimizer.Bare")
    assert plan["optimizers"][0]["name"] == "Bare"


@pytest.mark.parametrize(("m", "r"), [(64, 16), (40, 32), (30, 30)])
def test_newton_schulz_is_counted_as_it_multiplies(m: int, r: int) -> None:
    with FlopCounterMode(display=False) as counter:
        polar(torch.randn(m, r))
    assert flops.newton_schulz_flops(m, r, 5) == counter.get_total_flops()


def test_muon_is_counted_as_it_multiplies() -> None:
    weight = torch.nn.Parameter(torch.randn(24, 64))
    weight.grad = torch.randn(24, 64)
    optimizer = torch.optim.Muon([weight], ns_steps=5)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert 5 * flops.direct_newton_schulz_flops(64, 24) == counter.get_total_flops()


def test_the_products_of_a_retraction_are_counted() -> None:
    x = torch.linalg.qr(torch.randn(64, 8)).Q
    with FlopCounterMode(display=False) as counter:
        orthonormalize(x)
    assert flops.retraction_flops(64, 8) - 2 * 8**3 // 3 == counter.get_total_flops()


def test_a_plan_holds_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, "--config", str(RECIPE), *TOY, "--devices", "1", "4", "--memory", "60MB", "--tokens", "2M",
                   "--throughput", "1000")  # fmt: skip
    assert "largest micro-batch" in capsys.readouterr().out
    assert plan["parameters"]["total"] == sum(kind["parameters"] for kind in plan["parameters"]["kinds"])
    assert plan["flops"]["backward"] == 2 * plan["flops"]["forward"]
    by_name = {(line["strategy"], line["devices"]): line for line in plan["memory"]}
    assert list(by_name) == [("one device", 1), ("ddp", 4), ("fsdp", 4), ("hsdp", 4)]
    single, ddp, fsdp, hsdp = (line["kept"] for line in by_name.values())
    assert single["weights"] == ddp["weights"] == 4 * plan["parameters"]["total"]
    assert fsdp["optimizer"] == ddp["optimizer"] / 4
    assert fsdp["optimizer"] < hsdp["optimizer"] < ddp["optimizer"]
    assert by_name["hsdp", 4]["replicas"] == by_name["hsdp", 4]["shards"] == 2
    assert plan["budget"]["steps"] == -(-2_000_000 // plan["flops"]["tokens_per_step"])
    assert [line["seconds"] for line in plan["memory"][:2]] == [2000, 500]
    states = {row["name"]: row["state"] / row["parameters"] for row in plan["optimizers"]}
    assert states["Spectron"] == 4
    assert states["AdamW"] == pytest.approx(8, rel=1e-3)


def test_a_run_s_recorded_throughput_is_its_median(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "before" / "0001"
    folder.mkdir(parents=True)
    lines = [
        {"time": i, "step": i, "metrics": {"throughput/tokens_per_second": v}}
        for i, v in enumerate((10.0, 400.0, 500.0))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "metr')
    plan = planned(tmp_path, "--config", str(RECIPE), *TOY, "--runs", str(tmp_path / "runs"), "--like", "before")
    assert plan["throughput"] == 400


def test_hsdp_takes_a_node_of_shards_and_leaves_two_copies() -> None:
    assert layouts([2, 12, 64], None)[2::3] == [Layout("hsdp", 2, 1), Layout("hsdp", 2, 6), Layout("hsdp", 8, 8)]
    assert layouts([8], 2)[2] == Layout("hsdp", 4, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--devices", "6", "--shards", "4"], "--devices 6: hsdp cannot make copies of 4 shards"),
        (["--devices", "0"], "--devices 0: give numbers of processes, at least 1"),
        (["--devices", "two"], "argument --devices: invalid int value: 'two'"),
        (["--shards", "-1"], "--shards -1: processes that share one copy"),
        (["--memory", "80"], "--memory 80: give an amount of memory with its unit, as in 80GB or 80GiB"),
        (["--memory", "1.2.3GB"], "--memory 1.2.3GB: give an amount"),
        (["--tokens", "many"], "--tokens many: give a number of tokens"),
        (["--throughput", "0"], "--throughput 0: give tokens a second"),
        (["--tokens", "1e9", "--flops", "1e18"], "--tokens and --flops both set the budget"),
        (["--throughput", "5", "--like", "x"], "--throughput and --like both set the speed"),
        (["--throughput", "5", "--trainer.max_steps=-1"], "the time needs a budget: give --tokens or --flops"),
        (["--like", "none", "--runs", "/nowhere"], "--like none: no run of that name has metrics in /nowhere"),
        (["--json", "/proc/plan.json"], "--json /proc/plan.json: "),
        (["--trainer.precision=transformer-engine"], "trainer.precision is transformer-engine: a plan knows 32-true"),
        (["--trainer.max_stops=3"], "--trainer.max_stops: unknown key; did you mean max_steps?"),
        (["--model.decoder.widht=3"], "--model.decoder.widht: unknown key; did you mean width?"),
        (["--model.decoder.heads=3"], "model.decoder: width must be a multiple of 2 · heads"),
        (["--model.decoder.depth=0"], "model.decoder: depth must be at least 1, got 0"),
        (["--data.block_size=0"], "data.block_size is 0: give at least 1"),
        (["--data.batch_size=x"], "--data.batch_size: expected int, got x"),
        (["--sct-memory"], "--config: --sct-memory takes no configuration"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["plan", "--config", str(RECIPE), *TOY, *arguments], capsys).startswith(says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the configuration lacks "),
        (["--config", "absent.yaml"], "configuration file absent.yaml does not exist"),
    ],
)
def test_bad_input_without_a_recipe(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["plan", *arguments], capsys).startswith(says)


def test_the_70b_recipe_is_planned_in_little_more_than_torch_takes_to_import() -> None:
    plan = (
        "import sys; from lrtrain.cli.main import main; "
        f"assert main(['plan', '--config', {str(CONFIGS / 'sct_llama_70B.yaml')!r}]) == 0; "
        "assert not {'lightning', 'mlflow', 'litdata'} & set(sys.modules)"
    )
    out, seconds = in_fresh_process(plan)
    assert "939,812,352" in out
    assert "68,976,648,192" in out
    # 4 s of the processor where torch takes 3 s: other work on the machine slows both alike.
    _, imports = in_fresh_process("import torch._dynamo, torch.distributed.tensor")
    assert seconds < 2 * imports


def in_fresh_process(program: str) -> tuple[str, float]:
    """What a program prints, and the processor's seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_nothing_is_written_beside_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned(tmp_path, "--config", str(RECIPE), *TOY)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "gpu"])
@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (torch.optim.AdamW, 2),
        (partial(torch.optim.AdamW, fused=True), 2),
        (torch.optim.SGD, 0),
        (torch.optim.Muon, 1),
        (torch.optim.Adafactor, (24 + 16) / (24 * 16)),
        (Spectron, 1),
        (partial(Spectron, strict=True), 1),
        (Stiefel, 1),
        (partial(Stiefel, direction="adam"), 2),
    ],
)
def test_an_optimizer_is_asked_for_its_state(make: Any, numbers: float, on_cpu: bool) -> None:
    named = {f"{index}.A": torch.nn.Parameter(torch.empty(24, 16, device="meta")) for index in range(40)}
    _, (slot,) = build_optimizer(named, set(named), Optimizers(hidden=make, other=make))
    found = slot_bytes(slot, make, on_cpu)
    assert found.state / 4 / found.parameters == pytest.approx(numbers, abs=0.02)


def test_numbers_of_processes_may_have_a_flag_each(tmp_path: Path) -> None:
    each = planned(tmp_path, "--config", str(RECIPE), *TOY, "--devices", "1", "--devices", "4")
    assert each == planned(tmp_path, "--config", str(RECIPE), *TOY, "--devices", "1", "4")
