"""`lrtrain` itself: help at once, and one configuration out of recipes, overlays, environment and flags."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import toy
from commandline import RECIPE, arguments, refusal
from lrtrain import __version__
from lrtrain.cli.fit_help import OPTIONS
from lrtrain.cli.main import COMMANDS, main

HEAVY = ("torch", "lightning", "mlflow", "litdata", "transformers", "tokenizers", "pyarrow", "matplotlib", "omegaconf")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def overlay(tmp_path: Path) -> Any:
    """Writes overlays, and returns the flags that name them."""

    def write(*texts: str) -> list[str]:
        flags = []
        for index, text in enumerate(texts):
            path = tmp_path / f"over{index}.yaml"
            path.write_text(text)
            flags += ["--config", str(path)]
        return flags

    return write


@pytest.fixture
def resolve(capsys: pytest.CaptureFixture[str]) -> Any:
    """The configuration that `fit` would run with, as --print_config shows it, and that text."""

    def run(*flags: str, recipe: Path = RECIPE) -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", str(recipe), *flags, "--print_config"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        return yaml.safe_load(text), text

    return run


# Help


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, what) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", text, re.MULTILINE)
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_help_that_nobody_reads_to_its_end_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "lrtrain", "--help"], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_warning_of_ours_is_a_line_and_another_is_as_python_shows_it() -> None:
    program = """
import warnings
from lrtrain.cli.main import main
main(["--version"])
warnings.warn("theirs")
from functools import partial
from torch import nn
from lrtrain.nn import Decoder
linear = partial(nn.Linear, bias=False)
Decoder(50, 16, 1, 2, 24, attention=linear, mlp=linear, initial_scale="width")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    theirs, ours = done.stderr.splitlines()
    assert theirs.endswith("UserWarning: theirs")
    assert ours.startswith("lrtrain: warning: initial_scale width: 7 projections begin as they draw themselves")


def test_help_imports_nothing_heavy_and_takes_under_half_a_second_of_computing() -> None:
    program = f"""
import sys
from lrtrain.cli.main import main
main(["--help"])
assert not [name for name in {HEAVY} if name in sys.modules], sorted(sys.modules)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"lrtrain {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_help_of_a_run_is_one_screen_at_once(command: str) -> None:
    program = f"""
import sys
from lrtrain.cli.main import main
try:
    main(["{command}", "--help"])
except SystemExit as ended:
    assert not [name for name in {HEAVY} if name in sys.modules], sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"usage: lrtrain {command} ")
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


def test_the_options_of_the_help_exist_and_have_the_defaults_it_tells() -> None:
    from lrtrain.config.described import describe
    from lrtrain.config.train_parser import train_parser

    defaults = {action.dest: action.default for action in train_parser("fit", [])._actions}
    described = re.findall(r"^--(\S+) ", describe("fit", [], "all"), re.MULTILINE)
    for flag, _, default in OPTIONS:
        name = flag.split()[0].removeprefix("--")
        assert name in {*described, "config", "print_config", "print-model"}
        if default and default != "recipe":
            assert yaml.safe_load(default) == defaults[name], name


def test_a_topic_lists_its_keys_with_meaning_value_and_the_arguments_of_the_recipes_classes(
    capsys: pytest.CaptureFixture[str], overlay: Any
) -> None:
    def asked_for(*flags: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["fit", *flags])
        assert ended.value.code == 0
        return capsys.readouterr().out

    recipe = ["--config", str(RECIPE)]
    text = asked_for(*recipe, "--help", "optimizers", "--model.optimizers.other.lr=0.004")
    assert "--model.optimizers.hidden.lr (float) = 0.035\n      Learning rate η: the bound on" in text
    assert "--model.optimizers.other.lr (float | Tensor) = 0.004\n      learning rate" in text
    assert "--trainer" not in text
    inner = "{class_path: lrtrain.constraints.StiefelRetraction, init_args: {transport: true}}"
    callback = f"{{class_path: lrtrain.training.SpectralConstraints, init_args: {{constraints: [{inner}]}}}}"
    slot = "{class_path: torch.optim.SGD, init_args: {lr: 0.5}}"
    files = overlay(f"trainer: {{callbacks: [{callback}]}}\nmodel: {{optimizers: {{overrides: {{'*.s': {slot}}}}}}}")
    text = asked_for(*recipe, *files, "--help-all")
    assert "--trainer.callbacks.constraints.transport (bool) = true" in text
    assert "--model.optimizers.overrides.*.s.lr (float | Tensor) = 0.5" in text
    assert "--model.decoder.mlp.rank_ratio (float | null) = 0.25" in text
    assert "--data.prepare.source (list[str]) = [stdlib]" in text
    assert asked_for("--help=decoder").startswith("Values of the recipe quickstart; name yours with --config.")


def test_an_unknown_topic_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["fit", "--help", "optimizer"], capsys).startswith(
        "--help optimizer: no key has this part; did you mean optimizers?"
    )


def test_a_run_says_what_it_begins_with_before_it_imports_torch() -> None:
    program = f"""
import os, sys
class Told:
    def write(self, text):
        os.write(1, f"{{text}} {{'torch' in sys.modules}}".encode())
        os._exit(0)
sys.stderr = Told()
from lrtrain.cli.main import main
main(["fit", "--config", {str(RECIPE)!r}])
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"fit: {RECIPE}; importing torch and lightning … False"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lrtrain {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["fti"], "unknown command 'fti': did you mean fit?"),
        (["xyz"], "unknown command 'xyz': the commands are fit, validate"),
        (["prepare"], "the following arguments are required: --out; see lrtrain prepare --help"),
        (["prepare", "--out", "x", "--workers", "many"], "argument --workers: invalid int value: 'many'; see"),
        (["sync", "--nope"], "unrecognized arguments: --nope; see lrtrain sync --help"),
        (["compare"], "the following arguments are required: names, --tag or --study; see lrtrain compare"),
    ],
)
def test_a_wrong_command_or_argument_is_one_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(argv, capsys).startswith(line)


# One configuration


def test_what_print_config_prints_is_taken_again_and_gives_the_same(resolve: Any, tmp_path: Path) -> None:
    config, text = resolve("--trainer.max_steps=7", "--name=mine")
    (tmp_path / "printed.yaml").write_text(text)
    assert config["trainer"]["max_steps"] == 7
    assert resolve(recipe=tmp_path / "printed.yaml") == (config, text)


def test_of_two_overlays_the_second_wins_and_the_command_line_wins_over_both(resolve: Any, overlay: Any) -> None:
    files = overlay("trainer: {max_steps: 11, log_every_n_steps: 3}\nname: first", "trainer: {max_steps: 12}")
    config, _ = resolve(*files)
    assert config["name"] == "first"
    assert (config["trainer"]["max_steps"], config["trainer"]["log_every_n_steps"]) == (12, 3)
    assert resolve(*files, "--trainer.max_steps=13")[0]["trainer"]["max_steps"] == 13
    assert config["trainer"]["gradient_clip_val"] == 1.0, "what no overlay names stays as the recipe has it"


def test_a_reference_follows_overlays_and_flags(resolve: Any, overlay: Any) -> None:
    def ratios(config: dict[str, Any]) -> list[float]:
        parts = config["model"]["decoder"]["init_args"]
        return [parts[part]["init_args"]["rank_ratio"] for part in ("attention", "mlp")]

    above = "model: {decoder: {init_args: {attention: {init_args: {rank_ratio: 0.5}}}}}"
    assert ratios(resolve()[0]) == [0.25, 0.25]
    assert ratios(resolve(*overlay(above))[0]) == [0.5, 0.5]
    assert ratios(resolve("--model.decoder.attention.rank_ratio=0.125")[0]) == [0.125, 0.125]
    assert ratios(resolve("--model.decoder.mlp.rank_ratio=0.75")[0]) == [0.25, 0.75]
    assert resolve("--seed_everything=7")[0]["data"]["seed"] == 7


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--model.decoder.mlp.rank_ratio=null", "--model.decoder.mlp.rank=8"], "mlp.init_args.rank_ratio", None),
        (["--model.decoder.mlp.init_args.rank_ratio", "null"], "mlp.init_args.rank_ratio", None),
        (
            ["--model.decoder.mlp.init_args={rank: 8, rank_ratio: null}"],
            "mlp.init_args",
            {"rank": 8, "rank_ratio": None},
        ),
        (["--model.decoder.kv_heads=2", "--model.decoder.kv_heads=null"], "kv_heads", None),
    ],
)
def test_a_flag_takes_null_and_mappings_at_any_depth(resolve: Any, flags: list[str], key: str, value: Any) -> None:
    found = resolve(*flags)[0]["model"]["decoder"]["init_args"]
    for part in key.split("."):
        found = found[part]
    assert found == value or found == {**found, **value}


def test_a_flag_takes_a_list_of_classes_and_null_in_them(resolve: Any) -> None:
    callback = '{"class_path": "lrtrain.training.SpectralTelemetry", "init_args": {"layers": ["*.0.*"]}}'
    config, _ = resolve(
        f"--trainer.callbacks=[{callback}]",
        "--trainer.callbacks.layers=null",
        "--model.optimizers.other.betas=[0.8, 0.9]",
        "--model.optimizers.overrides={'*.s': {class_path: torch.optim.AdamW, init_args: {foreach: null}}}",
    )
    assert config["trainer"]["callbacks"][0]["init_args"]["layers"] is None
    assert config["model"]["optimizers"]["other"]["init_args"]["betas"] == [0.8, 0.9]
    assert config["model"]["optimizers"]["overrides"]["*.s"]["init_args"]["foreach"] is None


def test_an_overlay_that_replaces_an_optimizer_drops_what_the_new_one_does_not_know(resolve: Any, overlay: Any) -> None:
    text = "model: {optimizers: {hidden: {class_path: torch.optim.AdamW, init_args: {lr: 0.001}}}}"
    for flags in (overlay(text), ["--model.optimizers.hidden=torch.optim.AdamW", "--model.optimizers.hidden.lr=0.001"]):
        hidden = resolve(*flags)[0]["model"]["optimizers"]["hidden"]
        assert hidden["class_path"] == "torch.optim.AdamW"
        assert not {"momentum", "orthogonalize", "ns_steps"} & set(hidden["init_args"])
        assert hidden["init_args"]["lr"] == 0.001
        assert hidden["init_args"]["betas"] == [0.9, 0.999], "torch's defaults, not those of the slot before"


def test_the_environment_is_weaker_than_files_and_flags(
    resolve: Any, overlay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRTRAIN_TRAINER__MAX_EPOCHS", "3")
    monkeypatch.setenv("LRTRAIN_TRAINER__MAX_STEPS", "4")
    monkeypatch.setenv("LRTRAIN_RUNS", "elsewhere")
    config, _ = resolve()
    assert (config["trainer"]["max_epochs"], config["runs"]) == (3, "elsewhere")
    assert config["trainer"]["max_steps"] == 200, "the recipe names it"
    assert resolve(*overlay("trainer: {max_epochs: 5}"))[0]["trainer"]["max_epochs"] == 5
    assert resolve("--trainer.max_epochs=6")[0]["trainer"]["max_epochs"] == 6


def test_environment_alone_is_enough_for_a_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_CONFIG", str(RECIPE))
    for flag in arguments(shards, tmp_path)[2:]:
        name, _, value = flag.removeprefix("--").partition("=")
        if not name.startswith("model."):
            monkeypatch.setenv(f"LRTRAIN_{name.replace('.', '__').upper()}", value)
    monkeypatch.setenv("LRTRAIN_NAME", "from_the_environment")
    assert main(["fit", *toy.MODEL]) == 0
    assert (tmp_path / "from_the_environment/0001/checkpoints/step-00000002.ckpt").is_file()


def test_a_run_writes_its_resolved_configuration_which_runs_again(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(shards, tmp_path)]) == 0
    first = tmp_path / "quickstart/0001"
    assert main(["fit", "--config", str(first / "config.yaml")]) == 0
    second = tmp_path / "quickstart/0002"
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    weights = [
        torch.load(run / "checkpoints/step-00000002.ckpt", weights_only=True)["state_dict"] for run in (first, second)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_coverage_table_counts_every_parameter_once(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overlay: Any
) -> None:
    text = (
        "model: {optimizers: {overrides: {'decoder.embedding.*': {class_path: torch.optim.SGD, init_args: {lr: 1}}}}}"
    )
    assert main(["fit", *arguments(shards, tmp_path, *overlay(text))]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("pattern"))
    rows = [line.split() for line in lines[start + 1 : start + 4]]
    assert [(row[0], row[3]) for row in rows] == [
        ("decoder.embedding.*", "SGD"),
        ("hidden", "Spectron"),
        ("other", "AdamW"),
    ]
    total = next(line for line in lines if line.startswith("parameters")).split()[1]
    assert sum(int(row[2].replace(",", "")) for row in rows) == int(total.replace(",", ""))
    state = torch.load(tmp_path / "quickstart/0001/checkpoints/step-00000002.ckpt", weights_only=True)["state_dict"]
    assert sum(int(row[1]) for row in rows) == len(state)
