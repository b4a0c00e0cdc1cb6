"""What a run leaves in its directory, and what `validate` and `test` read out of it."""

import contextlib
import hashlib
import json
import os
import pty
import re
import threading
from pathlib import Path

import fsspec
import pytest
import yaml

import toy
from commandline import RECIPE, arguments
from lrtrain.checkpoint.single_file import read_whole
from lrtrain.cli.main import main
from lrtrain.config.train_parser import TrainingRun
from lrtrain.data.tokenizer import read_tokenizer
from lrtrain.runtime.errors import UserError
from lrtrain.tracking.logger import own_logger
from lrtrain.tracking.recorded import recorded


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def test_a_run_holds_its_configuration_its_tokenizer_and_a_checkpoint_with_both(shards: Path, tmp_path: Path) -> None:
    assert main(["fit", *arguments(shards, tmp_path)]) == 0
    run = tmp_path / "quickstart/0001"
    config, tokenizer = (run / "config.yaml").read_text(), (run / "tokenizer.json").read_text()
    assert yaml.safe_load(config)["model"]["decoder"]["init_args"]["vocab_size"] == toy.VOCABULARY
    assert tokenizer == (shards / "tokenizer.json").read_text()
    own = read_whole(run / "checkpoints/step-00000002.ckpt")["lrtrain"]
    assert (own["config"], own["tokenizer"]) == (config, tokenizer)


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_validation_of_a_checkpoint_gives_what_fit_measured(
    command: str, split: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = arguments(shards, tmp_path)
    assert main(["fit", *fit]) == 0
    summary = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("validation")).split()
    checkpoint = tmp_path / "quickstart/0001/checkpoints/step-00000002.ckpt"
    flags = ["--trainer.limit_test_batches=2"]  # as many as the toy's validation reads
    for where in (flags, [*flags, f"--ckpt_path={checkpoint}"], [*flags, "--name=x", f"--ckpt_path={checkpoint}"]):
        before = sorted(tmp_path.rglob("*"))
        assert main([command, *fit, *where]) == 0
        lines = capsys.readouterr().out.splitlines()
        first, *rows = [line for line in lines if not line.startswith("held-out data: ")]
        assert first == f"checkpoint {checkpoint}"
        assert [row.split() for row in (rows[0], rows[2])] == [
            [f"{split}/loss", summary[2]],
            [f"{split}/bits_per_byte", summary[8]],
        ]
        assert f"{float(rows[1].split()[1]):.2f}" == summary[4]
        assert sorted(tmp_path.rglob("*")) == before, "an evaluation leaves nothing"


CSV = "lightning.pytorch.loggers.CSVLogger"
OWN = "lrtrain.tracking.logger.MLflowLogger"


@pytest.mark.parametrize(
    ("flags", "kinds", "sent"),
    [
        ([], ["MLflowLogger"], True),
        (["--trainer.logger=false"], ["MLflowLogger"], False),
        (["--trainer.logger=[]"], ["MLflowLogger"], False),
        ([f"--trainer.logger={CSV}", "--trainer.logger.save_dir=csv"], ["CSVLogger", "MLflowLogger"], True),
        ([f"--trainer.logger+={CSV}", "--trainer.logger.save_dir=csv"], ["CSVLogger", "MLflowLogger"], True),
        ([f"--trainer.logger+={OWN}", f"--trainer.logger+={CSV}", "--trainer.logger.save_dir=csv"], None, True),
        ([f"--trainer.logger={OWN}", "--trainer.logger.send=false"], ["MLflowLogger"], False),
    ],
)
def test_the_record_is_kept_whatever_loggers_are_named(
    flags: list[str], kinds: list[str] | None, sent: bool, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--config", str(RECIPE), *toy.flags(shards, tmp_path), *flags]
    loggers = TrainingRun("fit", argv).trainer.loggers
    assert [type(logger).__name__ for logger in loggers] == (kinds or ["MLflowLogger", "CSVLogger"])
    own = own_logger(loggers)
    assert own is not None
    assert own.run_dir == str(tmp_path / "quickstart/0001")
    assert (own.tracking_uri is not None) == sent


def test_a_logger_of_ones_own_gets_the_points_beside_the_record(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    csv = ["--trainer.logger", CSV, "--trainer.logger.save_dir", str(tmp_path / "csv")]
    assert main(["fit", "--config", str(RECIPE), *toy.flags(shards, tmp_path), *csv]) == 0
    run = recorded(tmp_path / "quickstart/0001")
    assert run is not None
    assert run.status == "FINISHED"
    assert run.params["model.optimizers.hidden.init_args.lr"] == "0.035"
    (file,) = (tmp_path / "csv").rglob("metrics.csv")
    assert str(run.last["val/loss"])[:8] in file.read_text()


def test_the_tokenizer_is_read_from_a_url_too_and_must_be_the_shards() -> None:
    content = json.dumps({"text": "façade"}, ensure_ascii=False)
    with fsspec.open("memory://data/set/tokenizer.json", "wb") as file:
        file.write(content.encode())
    assert read_tokenizer("memory://data/set", hashlib.sha256(content.encode()).hexdigest()) == content
    with pytest.raises(UserError, match="is not the tokenizer of the shards beside it"):
        read_tokenizer("memory://data/set", hashlib.sha256(b"another").hexdigest())
    with pytest.raises(UserError, match=r"cannot read memory://elsewhere/tokenizer\.json \(FileNotFoundError\)"):
        read_tokenizer("memory://elsewhere", "")


def test_progress_shows_loss_speed_and_the_time_left_as_lines_and_as_a_bar(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", *arguments(shards, tmp_path, "--trainer.enable_progress_bar=true", steps=4)]
    assert main(fit) == 0
    _announced, line = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"step 4/4  100%  loss \d\.\d{3}  val \d\.\d{3} at 2  [\d,]+ tok/s  0.0 seconds left", line)

    master, slave = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            while chunk := os.read(master, 4096):
                shown.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("COLUMNS", "120")
        assert main(fit) == 0
        monkeypatch.undo()
    reader.join()
    os.close(master)
    assert re.search(rb"fit .*4/4.*loss \d\.\d{3}  val \d\.\d{3} at 4  [\d,]+ tok/s .*left", b"".join(shown), re.DOTALL)
