"""`lrtrain generate` from a checkpoint that `lrtrain fit` wrote."""

import io
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import toy
from commandline import arguments, refusal
from lrtrain.checkpoint.single_file import read_whole, write_whole
from lrtrain.cli.main import main
from lrtrain.config import text_generation
from lrtrain.config.trained_model import load, read_trained
from lrtrain.nn import Continuation

Generate = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two names, `second` the newer one, with other weights."""
    folder = tmp_path_factory.mktemp("generate")
    shards = toy.shards(folder)
    for seed, name in enumerate(("first", "second")):
        fit = arguments(shards, folder / "runs", f"--name={name}", f"--seed_everything={seed}")
        assert main(["fit", *fit]) == 0
    for age, name in enumerate(("second", "first")):
        stamp = 1_700_000_000 - age
        os.utime(folder / "runs" / name / "0001/checkpoints", (stamp, stamp))
    return folder / "runs"


@pytest.fixture
def generate(runs: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """What is printed, without the line's end."""

    def run(*flags: str, path: Path = runs) -> str:
        capsys.readouterr()
        assert main(["generate", str(path), "--max-new-tokens", "12", *flags]) == 0
        said = capsys.readouterr()
        looked, reading = said.err.splitlines()
        assert looked == f"generate: looking at {path} …"
        read = Path(reading.removeprefix("generate: reading ").removesuffix(" …"))
        assert path == read or path in read.parents
        assert read.name == "step-00000002.ckpt"
        assert said.out.endswith("\n")
        return said.out[:-1]

    return run


def type_in(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_the_prompt_is_continued_and_a_seed_repeats_the_text(generate: Generate) -> None:
    texts = [generate("--prompt", "spectral norm", "--seed", seed) for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("spectral norm") and len(text) > len("spectral norm") for text in texts)


def test_temperature_zero_takes_the_likeliest_token_whatever_the_seed(generate: Generate, runs: Path) -> None:
    texts = {generate("--prompt", "rank", "--temperature", "0", "--seed", seed) for seed in "123"}
    assert texts == {generate("--prompt", "rank", "--top-p", "0.000001")}, "as does a nucleus of one token"
    assert len({generate("--prompt", "rank", "--temperature", "3", "--seed", seed) for seed in "123"}) == 3


def test_no_more_tokens_than_asked_for(generate: Generate, runs: Path) -> None:
    _, tokenizer = load(runs / "first/0001/checkpoints/step-00000002.ckpt")
    one, two = (generate("--prompt", "rank", "--temperature", "0", "--max-new-tokens", n) for n in "12")
    assert two.startswith(one)
    assert one.removeprefix("rank") in {tokenizer.decode([token]) for token in range(toy.VOCABULARY)}


def test_words_keep_their_space_and_a_spelled_end_of_text_is_text(
    generate: Generate, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = read_trained(runs / "first/0001/checkpoints/step-00000002.ckpt")
    vocabulary = {"<unk>": 0, "<eos>": 1, **{piece: 2 + i for i, piece in enumerate("▁/<>eos")}}
    words = {f"▁word{i}": 9 + i for i in range(toy.VOCABULARY - 9)}
    tokenizer = Tokenizer(models.BPE({**vocabulary, **words}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    monkeypatch.setattr(text_generation, "read_trained", lambda path: replace(trained, tokenizer=tokenizer))
    for prompt in ("see", "see<eos>", ""):
        text = generate("--prompt", prompt, "--temperature", "3").removeprefix(prompt)
        assert re.fullmatch(r"( word\d+|[/<>eos]| )+", text if prompt else f" {text}"), text
        assert " word" in text
    asked: list[list[int]] = []

    def nothing(decoder: object, given: list[list[int]], *_: object, on_end: Callable[..., None], **__: object) -> None:
        asked.extend(given)
        on_end(0, Continuation())

    monkeypatch.setattr(text_generation, "generate", nothing)
    assert generate("--prompt", "see<eos>s") == "see<eos>s"
    assert 1 not in asked[0]
    assert len(asked[0]) >= 10


def test_the_prompt_comes_from_standard_input_when_none_is_given(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in("norm of a façade\n".encode(), monkeypatch)
    assert generate() == generate("--prompt", "norm of a façade\n")


def test_an_empty_prompt_begins_a_document(generate: Generate) -> None:
    assert generate("--prompt", "") == generate("--prompt", "")
    assert len(generate("--prompt", "")) > 0


def test_a_file_a_run_and_a_folder_of_runs_name_a_checkpoint(generate: Generate, runs: Path) -> None:
    def text(path: Path) -> str:
        return generate("--prompt", "step", "--temperature", "0", path=path)

    first, second = (runs / name / "0001" for name in ("first", "second"))
    own = [text(run / "checkpoints/step-00000002.ckpt") for run in (first, second)]
    assert own[0] != own[1]
    assert [text(first), text(first / "checkpoints"), text(runs / "first")] == [own[0]] * 3
    assert text(second) == text(runs) == own[1], "the newest of a folder"


def test_a_broken_newest_is_passed_over(generate: Generate, runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "first/0001", tmp_path / "0001")
    whole = run / "checkpoints/step-00000002.ckpt"
    (run / "checkpoints/step-00000003.ckpt").write_bytes(whole.read_bytes()[:-1000])
    assert generate("--prompt", "a", path=run) == generate("--prompt", "a", path=whole)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--temperature", "-1"], "--temperature must be a number of at least 0, got -1.0"),
        (["--temperature", "nan"], "--temperature must be a number of at least 0, got nan"),
        (["--temperature", "warm"], "argument --temperature: invalid float value: 'warm'; see lrtrain generate --help"),
        (["--top-p", "0"], "--top-p must be in (0, 1], got 0.0"),
        (["--top-p", "1.5"], "--top-p must be in (0, 1], got 1.5"),
        (["--top-k", "0"], "argument --top-k: expected a whole number, at least 1, got 0; see lrtrain generate --help"),
        (["--min-p", "2"], "--min-p must be in [0, 1], got 2.0"),
        (["--repetition-penalty", "0"], "--repetition-penalty must be a number above 0, got 0.0"),
        (["--max-new-tokens", "0"], "argument --max-new-tokens: expected a whole number, at least 1, got 0"),
        (["--samples", "0"], "argument --samples: expected a whole number, at least 1, got 0"),
        (["--stop", ""], "--stop: an empty text ends everything; name one"),
        (["--prompts", "a.jsonl"], "argument --prompts: not allowed with argument --prompt"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--device", "abacus"], "--device abacus: "),
        (["--seed", "-1"], "--seed -1: must be in"),
        (["--seed", str(2**64)], f"--seed {2**64}: must be in"),
        (["--prompt", "\udcff"], "--prompt is not text in UTF-8"),
    ],
)
def test_a_value_out_of_range_is_one_line(
    flags: list[str], line: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(["generate", str(runs), "--prompt", "a", *flags], capsys).startswith(line)


def test_standard_input_that_is_no_text_is_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(b"\xff\xfe\xfd", monkeypatch)
    assert refusal(["generate", str(runs)], capsys).startswith("standard input is not text in UTF-8")


def test_a_module_that_is_not_here_is_named_with_what_to_do(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (runs / "first").rglob("*.ckpt")
    checkpoint = read_whole(file)
    config = yaml.safe_load(checkpoint["lrtrain"]["config"])
    config["model"]["decoder"]["init_args"]["mlp"] = {"class_path": "absent_part.Projection"}
    checkpoint["lrtrain"]["config"] = yaml.safe_dump(config)
    write_whole(checkpoint, tmp_path / "own.ckpt")
    line = refusal(["generate", str(tmp_path / "own.ckpt"), "--prompt", "x"], capsys)
    assert line.endswith(
        "needs the module absent_part, which is not here: run this in the folder that has absent_part.py"
    )


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_a_model_of_nan_is_one_line(
    temperature: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (runs / "first").rglob("*.ckpt")
    checkpoint = read_whole(file)
    checkpoint["state_dict"]["decoder.norm.weight"].fill_(float("nan"))
    write_whole(checkpoint, tmp_path / "nan.ckpt")
    line = refusal(["generate", str(tmp_path / "nan.ckpt"), "--prompt", "x", "--temperature", temperature], capsys)
    assert line.startswith(f"checkpoint {tmp_path}/nan.ckpt: the model's logits are no finite numbers")
