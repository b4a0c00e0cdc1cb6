"""`lrtrain generate` with several prompts and samples: files, JSON, texts as they come, lines that are typed in."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

import saved_model
from commandline import refusal
from lrtrain.checkpoint.huggingface.imported import Imported
from lrtrain.checkpoint.single_file import read_whole, write_whole
from lrtrain.cli import generated
from lrtrain.cli.main import main
from lrtrain.config.trained_model import load
from lrtrain.nn import Decoder, Sampling, generate, order_for_decoding
from saved_model import LOW_RANK, decoder_config

Generate = Callable[..., str]
PROMPTS = ["spectral norm", "", "a façade of 東京"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draws bytes that are seldom whole characters; its context is 64 tokens."""
    return saved_model.save(tmp_path_factory.mktemp("generate") / "a.ckpt", decoder_config(LOW_RANK))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [json.dumps({"prompt": prompt, "id": 7}, ensure_ascii=number > 1) for number, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def run(checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Generate:
    """What is printed, which must be UTF-8."""

    def run(*flags: object, code: int = 0) -> str:
        capfdbinary.readouterr()
        assert main(["generate", str(checkpoint), "--max-new-tokens", "12", *map(str, flags)]) == code
        return capfdbinary.readouterr().out.decode("utf-8")

    return run


def type_in(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def test_a_file_is_continued_line_by_line_as_json_with_log_probabilities(
    run: Generate, file: Path, checkpoint: Path
) -> None:
    decoder, tokenizer = load(checkpoint)
    objects = [json.loads(line) for line in run("--prompts", file, "--samples", 2, "--json", "--top-k", 9).splitlines()]
    assert [(one["line"], one["prompt"], one["sample"]) for one in objects] == [
        (2 * place + 1, prompt, sample) for place, prompt in enumerate(PROMPTS) for sample in (1, 2)
    ]
    for one in objects:
        assert [*one] == ["line", "prompt", "sample", "text", "tokens", "log_probabilities", "ending"]
        prompt = tokenizer.encode(one["prompt"]).ids or [0]
        with torch.no_grad():
            logits = decoder.logits(decoder(torch.tensor([prompt + one["tokens"]])))[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(one["tokens"])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one["log_probabilities"]), expected, rtol=0, atol=1e-3)
        assert one["text"] == tokenizer.decode(one["tokens"])
        assert one["ending"] == ("length" if len(one["tokens"]) == 12 else "end of text")


def test_texts_stand_under_their_titles_and_are_those_of_the_json(run: Generate, file: Path) -> None:
    objects = [json.loads(line) for line in run("--prompts", file, "--samples", 2, "--json").splitlines()]
    text = "".join(
        f"--- line {one['line']}, sample {one['sample']} of 2\n{one['prompt']}{one['text']}\n" for one in objects
    )
    assert run("--prompts", file, "--samples", 2) == text
    assert run("--prompts", file, "--samples", 2, "--batch-size", 1) == text, "whatever is computed at once"
    assert run("--prompt", PROMPTS[0], "--samples", 2) == text.split("--- line 3")[0].replace("line 1, ", "")
    assert run("--prompt", PROMPTS[0]) == PROMPTS[0] + objects[0]["text"] + "\n"


def test_the_draws_of_a_seed_are_the_engines(run: Generate, checkpoint: Path) -> None:
    decoder, tokenizer = load(checkpoint)
    order_for_decoding(decoder, 1)  # as the command: in another order sums are rounded otherwise
    rules = {"temperature": 1.3, "top_k": 10, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5}
    flags: dict[str, float] = {f"--{name.replace('_', '-')}": value for name, value in rules.items()} | {"--seed": 5}
    flags["--max-new-tokens"] = 50
    (found,) = generate(decoder, [tokenizer.encode("rank").ids], 50, Sampling(**rules), seeds=["5 0"], stop_tokens=[0])

    def tokens(options: dict[str, float]) -> list[int]:
        return json.loads(run("--prompt", "rank", "--json", *itertools.chain(*options.items())))["tokens"]

    assert tokens(flags) == found.tokens
    for left_out in flags:
        others = {flag: value for flag, value in flags.items() if flag != left_out}
        assert tokens(others) != found.tokens, left_out


def test_a_text_ends_before_a_stop_string(run: Generate) -> None:
    whole = run("--prompt", "rank", "--temperature", 0).removeprefix("rank").removesuffix("\n")
    stop = whole[5:7]
    one = json.loads(run("--prompt", "rank", "--temperature", 0, "--json", "--stop", "never", "--stop", stop))
    assert (one["text"], one["ending"]) == (whole[: whole.index(stop)], "stop string")
    assert len(one["tokens"]) == len(one["log_probabilities"]) < 12
    assert run("--prompt", "rank", "--temperature", 0, "--stop", stop) == "rank" + one["text"] + "\n"


def test_a_text_is_written_as_it_comes(run: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, written = 0, []
    logits = Decoder.logits

    def count(self: Decoder, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return logits(self, hidden)

    monkeypatch.setattr(Decoder, "logits", count)
    monkeypatch.setattr(generated, "_write", lambda text: written.append((computed, text)))
    run("--prompt", "norm", "--samples", 2, "--temperature", 2)
    assert written[0] == (0, "--- sample 1 of 2\nnorm"), "the prompt at once"
    at = [count for count, text in written]
    assert at == sorted(at)
    assert len({*at}) >= 5, "the first sample token by token"
    titles = [count for count, text in written if text.startswith("--- sample 2 of 2\nnorm")]
    assert titles == [at[-1]], "the second when the first is whole"


def test_the_context_ends_a_text_and_the_longest_prompt_has_one_token(
    run: Generate, checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["generate", str(checkpoint), "--prompt", "x" * 60, "--max-new-tokens", "12", "--seed", "3"]) == 0
    said = capfdbinary.readouterr().err.decode()
    assert said.endswith("generate: ended where the context is full; --context goes beyond\n")
    one = json.loads(run("--prompt", "x" * 64, "--json"))
    assert (len(one["tokens"]), one["ending"]) == (1, "context")
    assert len(json.loads(run("--prompt", "x" * 65, "--context", 100, "--json"))["tokens"]) == 12


def test_an_imported_model_has_its_context_its_ends_and_what_its_tokenizer_puts_before_a_text(
    checkpoint: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    decoder, tokenizer = load(checkpoint)
    start = [("<|endoftext|>", 0)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=start)
    ids = tokenizer.encode("rank").ids
    assert ids[0] == 0
    (found,) = generate(decoder, [ids], 40, Sampling(0), stop_tokens=[0])
    content = read_whole(checkpoint)
    content["lrtrain"]["tokenizer"] = tokenizer.to_str()

    def tokens(length: int, ends: object) -> tuple[list[int], str]:
        content["lrtrain"]["imported"] = Imported("a", "llama", "float32", length, ends={"eos_token_id": ends}).record()
        write_whole(content, tmp_path / "imported.ckpt")
        capfdbinary.readouterr()
        flags = ["--prompt", "rank", "--temperature", "0", "--json"]
        assert main(["generate", str(tmp_path / "imported.ckpt"), *flags]) == 0
        one = json.loads(capfdbinary.readouterr().out)
        return one["tokens"], one["ending"]

    last = next(token for token in found.tokens[3:] if token not in found.tokens[:3])
    assert tokens(20, last) == tokens(20, [0, last]) == (found.tokens[: found.tokens.index(last)], "end of text")
    assert tokens(10, None) == (found.tokens[: 11 - len(ids)], "context")


def test_a_prompt_longer_than_the_context_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = (
        "65 tokens, and the context has 64, the longest sequence of the training (data.block_size): shorten it, or go "
        "beyond by --context"
    )
    assert refusal(["generate", str(checkpoint), "--prompt", "x" * 65], capsys) == f"--prompt: {why}"
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "' + "x" * 65 + '"}\n')
    line = refusal(["generate", str(checkpoint), "--prompts", str(tmp_path / "a.jsonl")], capsys)
    assert line == f"{tmp_path}/a.jsonl line 2: {why}"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b'{"prompt": "a"}\n\n{"prompt": \n',
            "line 3 is no JSON (Expecting value: line 1 column 12 (char 11));",
        ),
        (
            b'["a"]',
            'line 1: an object with "prompt", a string, is expected; a line is {"prompt": "a text',
        ),
        (b'{"promt": "a"}', 'line 1: an object with "prompt", a string, is expected; a line is'),
        (b'{"prompt": 3}', 'line 1: an object with "prompt"'),
        (b'{"prompt": "\xff"}', "line 1: 'utf-8' codec can't decode byte 0xff"),
        (rb'{"prompt": "\ud800"}', "line 1: 'utf-8' codec can't encode character"),
        (b"\n \n", ': holds no line; a line is {"prompt": "a text to continue"}'),
        (None, ": No such file or directory; name a file of JSON lines"),
    ],
)
def test_a_line_that_holds_no_prompt_is_named(
    content: bytes | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.jsonl"
    if content is not None:
        file.write_bytes(content)
    said = refusal(["generate", str(tmp_path / "absent"), "--prompts", str(file)], capsys)
    assert said.removeprefix("--prompts ").removeprefix(f"{file}").lstrip(" ").startswith(line)


def test_each_line_that_is_typed_in_is_continued(
    run: Generate, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], checkpoint: Path
) -> None:
    type_in("norm\n\n東京\nnorm".encode(), monkeypatch)
    texts = run("--interactive", "--json").splitlines()
    prompts = [json.loads(line)["prompt"] for line in texts]
    assert prompts == ["norm", "", "東京", "norm"]
    first, *_, last = (json.loads(line)["tokens"] for line in texts)
    assert first != last, "each with draws of its own"
    type_in(b"x" * 65 + b"\nnorm\n", monkeypatch)
    capfdbinary.readouterr()
    assert main(["generate", str(checkpoint), "--interactive", "--temperature", "0", "--max-new-tokens", "2"]) == 0
    said = capfdbinary.readouterr()
    assert b"generate: line 1: 65 tokens, and the context has 64" in said.err
    assert said.out.decode().startswith("norm")
    type_in(b"\xff\n", monkeypatch)
    run("--interactive", code=2)


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("interactive", [False, True])
def test_ctrl_c_ends_a_text_with_its_line(
    interactive: bool, run: Generate, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    calls = 0
    logits = Decoder.logits

    def interrupted(self: Decoder, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return logits(self, hidden)

    monkeypatch.setattr(Decoder, "logits", interrupted)
    type_in(b"norm\nrank\n", monkeypatch)
    flags = ["--interactive"] if interactive else ["--prompt", "norm"]
    out = run(*flags, "--temperature", "0", code=0 if interactive else 130)
    assert out.startswith("norm")
    assert out.endswith("\n")
    assert ("\nrank" in out) == interactive, "the next line is continued all the same"


@pytest.mark.slow
def test_a_closed_pipe_and_an_ascii_locale_are_no_errors(checkpoint: Path) -> None:
    command = f"{sys.executable} -P -m lrtrain generate {checkpoint} --prompt façade --max-new-tokens 50"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def shell(line: str) -> Any:
        return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, check=False, timeout=300)

    whole = shell(command)
    assert (whole.returncode, whole.stdout.decode()[:6]) == (0, "façade")
    cut = shell(f"set -o pipefail; {command} | head -c 3")
    assert (cut.returncode, cut.stdout, b"Traceback" in cut.stderr) == (0, whole.stdout[:3], False)
