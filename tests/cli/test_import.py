"""`lrtrain import`: what of a Llama of transformers is carried, and that its files are whole or absent."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import llama_folder
import saved_model
from commandline import refusal
from import_command import imported
from lrtrain.cli.main import main
from lrtrain.config.import_files import write_import
from lrtrain.config.trained_model import load
from lrtrain.nn import Decoder
from lrtrain.runtime.files import alone

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def tokens(length: int = 60) -> Tensor:
    return torch.randint(0, saved_model.VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def differ(ours: Decoder, theirs: Any) -> float:
    """The largest difference of a logit, as a share of the largest."""
    x = tokens()
    expected = theirs(x).logits
    return float((ours.logits(ours(x)) - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Llama with grouped heads."""
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    llama_folder.save(folder)
    return folder


# What is carried


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, **LLAMA3}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
        {"dtype": "bfloat16", "size": "20KB"},
        {"kind": "Mistral", "sliding_window": None},
        {"vocab_size": 384, "max_position_embeddings": 4096},
    ],
    ids=[
        "grouped",
        "tied, other ε",
        "one head, other base",
        "llama3",
        "linear",
        "bf16, shards",
        "mistral",
        "padded, long",
    ],
)
def test_the_checkpoint_computes_what_transformers_does_and_so_does_its_export(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    theirs = llama_folder.save(tmp_path / "source", **changes)
    ours = imported(tmp_path / "source", tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert differ(ours, theirs) < 1e-5
    said = capsys.readouterr().out
    assert f"weights         {changes.get('dtype', 'float32')} → float32" in said
    assert main(["export", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "again")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert differ(ours, again) < 1e-5
    for field in ("rope_parameters", "max_position_embeddings", "tie_word_embeddings", "vocab_size", "rms_norm_eps"):
        assert getattr(again.config, field) == getattr(theirs.config, field)
    assert (again.config.bos_token_id, again.config.eos_token_id) == (0, 0)


def test_generate_takes_the_tokens_that_transformers_takes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imported(source, tmp_path)
    recipe = yaml.safe_load((tmp_path / "model.yaml").read_text())
    assert recipe["data"]["block_size"] == 128
    long = ["--prompt", "a " * 150, "--max-new-tokens", "1"]
    assert " and the context has 128, " in refusal(["generate", str(tmp_path / "model.ckpt"), *long], capsys)
    capsys.readouterr()
    flags = ["--prompt", "a weather station", "--temperature", "0", "--max-new-tokens", "12"]
    assert main(["generate", str(tmp_path / "model.ckpt"), *flags]) == 0
    said = capsys.readouterr().out
    tokenizer, model = (kind.from_pretrained(source) for kind in (AutoTokenizer, AutoModelForCausalLM))
    prompt = tokenizer("a weather station", return_tensors="pt")
    expected = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert said == tokenizer.decode(expected[0], skip_special_tokens=True) + "\n"


def test_what_ends_an_answer_is_what_the_generation_configuration_says(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model, tokenizer = (kind.from_pretrained(source) for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer("a weather station", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    end = next(token for place, token in enumerate(written) if place > 2 and token not in written[:place])
    shutil.copytree(source, tmp_path / "source")
    GenerationConfig(bos_token_id=0, eos_token_id=[0, end]).save_pretrained(tmp_path / "source")
    imported(tmp_path / "source", tmp_path)
    flags = ["--prompt", "a weather station", "--temperature", "0", "--max-new-tokens", "12", "--json"]
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "model.ckpt"), *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["tokens"], said["ending"]) == (written[: written.index(end)], "end of text")
    assert main(["export", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "again")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again.generation_config.eos_token_id == [0, end]
    assert again.config.eos_token_id == 0


def test_its_tokens_and_license_reach_the_export_and_what_ours_has_not_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    source = tmp_path / "tiny"
    llama_folder.save(source, vocab_size=384)
    llama_folder.save_tokenizer(source, begin="<s>", chat_template="{{ messages }}", pad_token="<s>")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    imported(source, tmp_path)
    said = capsys.readouterr().out
    assert "license apache-2.0\n" in said
    assert "tokenizer       " in said
    assert " the model began every text with <s>, as generate does; lrtrain's data begin after <|endoftext|>\n" in said
    assert main(["export", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "again")]) == 0
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "again"))
    text = "the weather station, 1987"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.convert_ids_to_tokens(after(text)["input_ids"])[0] == "<s>"
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert getattr(after, name) == getattr(before, name)
    card = (tmp_path / "again/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "apache-2.0, as tiny states it." in card
    assert "| read from | `tiny` (llama), stored there as float32 |" in card
    assert "pre-trained with lrtrain" not in card
    assert str(tmp_path) not in card


def test_an_export_of_ours_comes_back_with_the_tokenizer_of_its_data(tmp_path: Path) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", saved_model.decoder_config())
    assert main(["export", str(file), "--out", str(tmp_path / "out")]) == 0
    imported(tmp_path / "out", tmp_path)
    assert load(tmp_path / "model.ckpt")[1].to_str() == load(file)[1].to_str()


def test_a_gguf_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = llama_folder.model(tie_word_embeddings=True)
    llama_folder.save_gguf(tmp_path / "tiny.gguf", theirs)
    ours = imported(tmp_path / "tiny.gguf", tmp_path)
    assert differ(ours, theirs) < 1e-5
    said = capsys.readouterr().out
    assert "source          " in said
    assert "tiny.gguf   llama   license mit\n" in said
    assert "weights         F32 → float32" in said
    expected = saved_model.tokenizer().encode("a weather station").ids
    assert load(tmp_path / "model.ckpt")[1].encode("a weather station").ids == expected


# Its files


@pytest.mark.parametrize("name", ["model.ckpt", "model.yaml", "model.tokenizer.json"])
def test_what_is_there_is_not_written_over(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    line = refusal(["import", str(source), "--out", str(tmp_path / "model.ckpt")], capsys)
    assert line == f"--out {tmp_path}/model.ckpt: {tmp_path}/{name} exists already; name a new file"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_another_import_to_the_same_files_is_kept_out_and_what_it_wrote_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["import", str(source), "--out", str(tmp_path / "model.ckpt")]
    with alone(tmp_path / ".model.ckpt.lock", "busy"):
        line = refusal(command, capsys)
    assert line == f"--out {tmp_path}/model.ckpt: another process writes it just now; name another file"
    assert not list(tmp_path.iterdir())

    def meanwhile(*arguments: Any) -> None:
        (tmp_path / "model.yaml").write_text("another's")
        write_import(*arguments)

    monkeypatch.setattr("lrtrain.config.importing.write_import", meanwhile)
    assert "model.yaml exists already; name a new file" in refusal(command, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]


def test_a_full_disk_leaves_nothing_half_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        line = refusal(["import", str(source), "--out", str(tmp_path / "deep/model.ckpt")], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert line == f"cannot write {tmp_path}/deep/model.ckpt: File too large; make room or name another place"
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_interrupted_import_leaves_nothing_half_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        assert (tmp_path / "model.ckpt").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("lrtrain.config.import_files.write_atomically", interrupted)
    assert main(["import", str(source), "--out", str(tmp_path / "model.ckpt")]) == 130
    assert list(tmp_path.iterdir()) == []


# Memory


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("arguments", "copies"),
    [(("float32",), 1.1), (("bfloat16",), 1.3), (("gguf",), 1.5), (("bfloat16", "64"), 6.0)],
    ids=["mapped", "bfloat16", "gguf", "factorized"],
)
def test_no_more_than_a_copy_of_the_weights_is_in_memory(
    arguments: tuple[str, ...], copies: float, tmp_path: Path
) -> None:
    kind, *rank = arguments
    program = Path(__file__).parents[1] / "support/measured_import.py"
    command = [sys.executable, str(program), kind, str(tmp_path), *rank]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["peak"] < copies * measured["copy"]
