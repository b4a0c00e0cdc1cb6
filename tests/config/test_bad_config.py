"""A wrong configuration gets one line with what, where and the nearest that is right, and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.yaml_file import TOO_LARGE

Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def refuse(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Refuses `fit` with further flags, and with an overlay `over.yaml` of the given text if there is one."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, overlay: str | None = None) -> str:
        if overlay is not None:
            Path("over.yaml").write_text(overlay)
            flags = ("--config", "over.yaml", *flags)
        line = refusal(["fit", *arguments(shards, Path("runs"), *flags)], capsys)
        assert not list(Path(".").glob("runs/*")), "something that looks like a run was left"
        return line

    return run


KEYS = {
    "trainer: {max_stesp: 3}": "trainer.max_stesp: unknown key; did you mean max_steps?",
    "modle: {x: 1}": "modle: unknown key; did you mean model?",
    "data: {prepare: {sources: [stdlib]}}": "data.prepare.sources: unknown key; did you mean source?",
    "checkpoints: {every: 3}": "checkpoints.every: unknown key; did you mean every_n_steps?",
    "model: {decoder: {init_args: {widht: 64}}}": "model.decoder.init_args.widht: unknown key; did you mean width?",
    "model: {decoder: {init_args: {mlp: {init_args: {rank_ration: 1}}}}}": (
        "model.decoder.init_args.mlp.init_args.rank_ration: unknown key; did you mean rank_ratio?"
    ),
    "model: {optimizers: {hiddn: {class_path: torch.optim.AdamW}}}": (
        "model.optimizers.hiddn: unknown key; did you mean hidden?"
    ),
    "model: {optimizers: {hidden: {init_args: {mometum: 0.9}}}}": (
        "model.optimizers.hidden.init_args.mometum: unknown key; did you mean momentum?"
    ),
    "model: {optimizers: {overrides: {'*.A': {class_path: torch.optim.AdamW, init_args: {wieght_decay: 0}}}}}": (
        "model.optimizers.overrides.*.A.init_args.wieght_decay: unknown key; did you mean weight_decay?"
    ),
    "trainer: {callbacks: [{class_path: lrtrain.training.SpectralConstraints, init_args: {constraint: []}}]}": (
        "trainer.callbacks[0].init_args.constraint: unknown key; did you mean constraints?"
    ),
}
CLASSES = {
    "model: {optimizers: {hidden: {class_path: torch.optim.AdmW}}}": (
        "model.optimizers.hidden.class_path: the module torch.optim has no AdmW; did you mean AdamW?"
    ),
    "model: {decoder: {class_path: lrtrain.nnn.Decoder}}": "model.decoder.class_path: the module lrtrain has no nnn",
    "model: {decoder: {class_path: lrtarin.nn.Decoder}}": "model.decoder.class_path: there is no module lrtarin;",
    "model: {optimizers: {other: {class_path: torch.nn.Linear}}}": (
        "model.optimizers.other.class_path: torch.nn.Linear is no Optimizer"
    ),
    "model: {optimizers: {hidden: 3}}": "model.optimizers.hidden: expected a class path, got 3",
    "trainer: {callbacks: [{class_path: lrtrain.training.Constraints}]}": (
        "trainer.callbacks[0].class_path: the module lrtrain.training has no Constraints; did you mean"
    ),
}
TYPES = {
    "trainer: {max_steps: many}": "trainer.max_steps: expected int, got many",
    "data: {prepare: {source: stdlib}}": "data.prepare.source: expected list, got stdlib",
    "model: {optimizers: {hidden: {init_args: {lr: fast}}}}": (
        "model.optimizers.hidden.init_args.lr: expected float, got fast"
    ),
    "model: {decoder: {init_args: {attention: {init_args: {rank_ratio: wide}}}}}": (
        "model.decoder.init_args.attention.init_args.rank_ratio: expected float, got wide"
    ),
    "data: {seed: '${oc.env:NOT_SET}'}": 'data.seed: KeyError raised while resolving interpolation: "Environment',
    "data: {seed: '${sed_everything}'}": "data.seed: ${sed_everything} names no key of the configuration",
}


DOUBLING = "a0: &a0 [x, x]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n" for k in range(40))
STOPPING = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/loss, mode: up}}"


@pytest.mark.parametrize(("text", "line"), [*KEYS.items(), *CLASSES.items(), *TYPES.items()])
def test_a_wrong_key_class_type_or_reference_in_a_file_is_named_with_the_file(
    text: str, line: str, refuse: Refuse
) -> None:
    assert refuse(overlay=text).startswith(f"over.yaml: {line}")


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--trainer.max_stesp=3", "--trainer.max_stesp: unknown key; did you mean max_steps?"),
        ("--nmae=x", "--nmae: unknown key; did you mean name?"),
        ("--model.decoder.widht=64", "--model.decoder.widht: unknown key; did you mean width?"),
        ("--model.optimizers.hiden.lr=1", "--model.optimizers.hiden: unknown key; did you mean hidden?"),
        ("--model.optimizers.hidden=torch.optim.AdmW", "--model.optimizers.hidden: the module torch.optim has no AdmW"),
        ("--trainer.max_steps=abc", "--trainer.max_steps: expected int, got abc"),
        ("--data.prepare.val_fraction=x", "--data.prepare.val_fraction: expected float, got x"),
        ("--trainer.precision=bf17", "--trainer.precision: expected int or 'transformer-engine'"),
        ("--model.decoder.mlp.rank_ratio=null", "model.decoder: give either rank or rank_ratio"),
        ("--trainer.max_steps", "argument --trainer.max_steps: expected one argument"),
        ("stray", "stray: stands alone; every argument is an option"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1: give the largest norm of the gradient"),
        ("--trainer.limit_train_batches=0", "trainer.limit_train_batches is 0: nothing would be trained"),
        ("--trainer.gradient_clip_val=.nan", "trainer.gradient_clip_val is nan: give the largest norm of the gradient"),
        ("--trainer.callbacks+=LearningRateFinder", "trainer.callbacks: LearningRateFinder tries one rate"),
        ("--trainer.callbacks+=BatchSizeFinder", "trainer.callbacks: BatchSizeFinder trains with another batch"),
        (
            "--trainer.callbacks=[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 4}}}]",
            "trainer.callbacks: GradientAccumulationScheduler makes other steps than a plan knows",
        ),
        (
            "--trainer.logger=CometLogger",
            "configuration: Problem with given class_path 'lightning.pytorch.loggers.Comet",
        ),
    ],
)
def test_a_wrong_flag_is_named(flag: str, line: str, refuse: Refuse) -> None:
    assert refuse(flag).startswith(line)


def test_a_wrong_value_in_the_environment_is_named(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_TRAINER__MAX_EPOCHS", "abc")
    assert refuse().startswith("LRTRAIN_TRAINER__MAX_EPOCHS: expected int, got abc")


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("LRTRAIN_TRAINER__MAX_STESP", "unknown variable; did you mean LRTRAIN_TRAINER__MAX_STEPS?"),
        ("LRTRAIN_trainer__devices", "unknown variable; did you mean LRTRAIN_TRAINER__DEVICES?"),
        ("LRTRAIN_MODEL__DECODER__WIDTH", "unknown variable; LRTRAIN_MODEL__DECODER takes the whole value in YAML"),
        ("LRTRAIN_OPTIMIZERS", "unknown variable; "),
    ],
)
def test_a_variable_that_nobody_reads_is_refused(
    variable: str, line: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert refuse().startswith(f"{variable}: {line}")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"trainer:\n  max_steps: [1\nname: }\n", "over.yaml is not valid YAML: line 3: "),
        (b"\xff\xfe\x00trainer", "over.yaml is not valid YAML: not text in UTF-8"),
        (b"just words\n", "over.yaml holds no settings"),
        (b"", "over.yaml holds no settings"),
        (
            b"data:\n  seed: 1\nname: x\ndata:\n  seed: 2\n",
            "over.yaml is not valid YAML: line 4: the key data comes twice",
        ),
        (b"1: 2\n", "over.yaml: the key 1 is no text"),
        (b"&a\nmodel: *a\n", f"over.yaml {TOO_LARGE}"),
        (b"model: " + b"[" * 5000 + b"]" * 5000, f"over.yaml {TOO_LARGE}"),
        (DOUBLING.encode(), f"over.yaml {TOO_LARGE}"),
        (None, "configuration file over.yaml does not exist: check the path"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_and_not_the_good_one_before_it(
    content: bytes | None, line: str, refuse: Refuse
) -> None:
    if content is not None:
        Path("over.yaml").write_bytes(content)
    assert refuse("--config", "over.yaml").startswith(line)


def test_no_recipe_at_all_says_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "lacks model.decoder" in (line := capsys.readouterr().err)
    assert "--config configs/quickstart.yaml" in line


OPTIMIZER = "model: {{optimizers: {{{}}}}}"
ADAMW_RENORMALIZED = """
model: {optimizers: {hidden: {class_path: torch.optim.AdamW}}}
trainer:
  callbacks:
    - class_path: lrtrain.training.SpectralConstraints
      init_args: {constraints: [lrtrain.constraints.SpectralRenormalization]}
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (OPTIMIZER.format("hidden: {init_args: {lr: 7}}"), "model.optimizers.hidden: Spectron: lr must be in (0, 1]"),
        (OPTIMIZER.format("other: {init_args: {lr: -1}}"), "model.optimizers.other: Invalid learning rate: -1"),
        (OPTIMIZER.format("other: null"), "the configuration lacks model.optimizers.other"),
        (OPTIMIZER.format("other: {class_path: torch.optim.Muon}"), "model.optimizers: Muon only supports 2D"),
        (OPTIMIZER.format("other: {class_path: torch.optim.LBFGS}"), "model.optimizers.other: LBFGS computes the loss"),
        (
            OPTIMIZER.format("overrides: {'*.nothing': {class_path: torch.optim.AdamW}}"),
            "model.optimizers.overrides: the pattern '*.nothing' matches no parameter",
        ),
        (
            "model: {decoder: {init_args: {attention: {init_args: {rank_ratio: 1.5}}}}}",
            "model.decoder: rank_ratio must",
        ),
        ("model: {decoder: {init_args: {attention: {init_args: {rank: 8}}}}}", "model.decoder: give either rank or"),
        ("model: {schedule: {init_args: {warmup: 2}}}", "model.schedule: WarmupCosine: warmup must be in [0, 1]"),
        ("checkpoints: {every_n_steps: 0}", "checkpoints.every_n_steps is 0"),
        (f"trainer: {{callbacks: [{STOPPING}]}}", "configuration: `mode` can be min, max, got up"),
        ("seed_everything: -3", "seed_everything is -3: give 0 to"),
        ("name: ../elsewhere", "name is '../elsewhere': give the name of a folder inside"),
        ("name: ''", "name is ''"),
        (
            ADAMW_RENORMALIZED,
            "trainer.callbacks: SpectralConstraints, SpectralRenormalization: the factors'",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_written(text: str, line: str, refuse: Refuse) -> None:
    assert refuse(overlay=text).startswith(line)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--model.decoder.width=63", "model.decoder: width must be a multiple of"),
        ("--data.batch_size=0", "data.batch_size is 0: give at least 1"),
        ("--trainer.max_steps=0", "trainer.max_steps is 0: give at least 1"),
        ("--trainer.max_steps=-5", "trainer.max_steps is -5: "),
        ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches is 0: give at least 1"),
        ("--trainer.val_check_interval=0", "trainer.val_check_interval is 0: give at least 1"),
        ("--trainer.limit_val_batches=-1", "trainer.limit_val_batches is -1"),
        ("--trainer.enable_checkpointing=false", "trainer.enable_checkpointing: a run is always saved"),
        ("--trainer.accelerator=warp", "trainer.accelerator is warp: "),
        ("--trainer.devices=0", "trainer.devices is 0: "),
        ("--trainer.strategy=dpp", "trainer.strategy is dpp: "),
        ("--runs=/dev/null/runs", "cannot make /dev/null/runs/quickstart/0001: Not a directory; set --runs"),
    ],
)
def test_a_flag_that_cannot_be_is_refused(flag: str, line: str, refuse: Refuse) -> None:
    assert refuse(flag).startswith(line)


def test_settings_that_exclude_each_other_are_refused(refuse: Refuse) -> None:
    line = refuse("--trainer.check_val_every_n_epoch=2", "--trainer.val_check_interval=3")
    assert line.startswith("trainer.check_val_every_n_epoch is 2, with a trainer.val_check_interval: give the latter")


@pytest.mark.parametrize("more", [(), ("--trainer.max_epochs=-1",), ("--trainer.max_time=00:00:01:00",)])
def test_a_run_without_an_end_is_refused(more: tuple[str, ...], refuse: Refuse) -> None:
    line = refuse("--trainer.max_steps=-1", *more)
    assert line == "trainer.max_steps: the schedule needs the length of the run: set max_steps or max_epochs"


def test_a_run_of_less_than_a_step_is_refused(refuse: Refuse) -> None:
    epochs = ("--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=7")
    line = refuse(*epochs, "--trainer.accumulate_grad_batches=8")
    assert line.startswith("trainer.max_epochs is 1: that is 7 micro-batches, less than one step of 8")


@pytest.mark.parametrize("key", ["limit_train_batches", "overfit_batches"])
def test_a_share_of_an_epoch_without_a_batch_is_refused(key: str, refuse: Refuse) -> None:
    line = refuse(f"--trainer.{key}=0.0001")
    assert line.startswith(f"trainer.{key} is 0.0001: that is 0.0")
    assert line.endswith(" micro-batches of an epoch, give more")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_gpu_that_is_not_there_is_refused(refuse: Refuse) -> None:
    assert refuse("--trainer.accelerator=gpu").startswith("trainer.accelerator is gpu: ")


def test_the_traceback_is_shown_when_asked_for(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_DEBUG", "1")
    with pytest.raises(UserError, match="did you mean name"):
        main(["fit", *arguments(shards, tmp_path, "--nmae=x")])
