"""Tokenizers: what may be loaded, what is refused, and that a trained one loses nothing."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from lrtrain.data import tokenizer as tokenizing
from lrtrain.data.tokenizer import end_of_text, load_tokenizer, train_tokenizer, vocabulary_size
from lrtrain.runtime.errors import UserError

TEXTS = ["the cat sat on the mat\n", "the dog sat on the log\n"] * 50


def test_a_trained_tokenizer_gives_back_any_text_and_has_the_size_asked_for() -> None:
    tokenizer = train_tokenizer(TEXTS, 270)
    text = " tabs\tand ⌘ 日本語 \r\n\x00 the cat"
    assert vocabulary_size(tokenizer) == 270
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id("<|endoftext|>") == end_of_text(tokenizer)


def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, 300).to_str() == train_tokenizer(iter(TEXTS), 300).to_str()


def test_a_long_text_trains_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the cat  sat on the mat\n\n and the dog " * 300
    whole = train_tokenizer([text], 300).to_str()
    monkeypatch.setattr(tokenizing, "PIECE", 1000)
    assert len([*tokenizing._pieces(text)]) == len(text) // 1000 + 1
    assert "".join(tokenizing._pieces(text)) == text
    assert train_tokenizer([text], 300).to_str() == whole
    assert [*tokenizing._pieces("x" * 2500)] == ["x" * 1000, "x" * 1000, "x" * 500]


def test_a_tokenizer_loads_from_its_file_and_from_its_folder_without_truncation_or_dropout(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 270)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=99)
    tokenizer.model.dropout = 0.5
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for where in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(where))
        assert loaded.decode(loaded.encode(TEXTS[0]).ids) == TEXTS[0]
        assert len({tuple(loaded.encode(TEXTS[0]).ids) for _ in range(20)}) == 1


@pytest.mark.parametrize("token", ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"])
def test_the_usual_end_of_text_tokens_are_known(token: str) -> None:
    assert end_of_text(Tokenizer(models.WordLevel({"a": 0, token: 1}, unk_token="a"))) == 1


def test_gaps_in_the_ids_count_towards_the_vocabulary() -> None:
    assert vocabulary_size(Tokenizer(models.WordLevel({"a": 0, "<eos>": 9}, unk_token="a"))) == 10


def test_what_is_no_tokenizer_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "no_end.json"))
    state = json.loads(train_tokenizer(TEXTS, 270).to_str())
    state["model"]["continuing_subword_prefix"] = "Ġ"  # on which the library panics
    (tmp_path / "panics.json").write_text(json.dumps(state))
    for name, word in (
        (f"{tmp_path}/text.json", "not a tokenizer file"),
        (f"{tmp_path}/config.json", "not a tokenizer file"),
        (f"{tmp_path}/panics.json", "not a tokenizer file"),
        (f"{tmp_path}/missing.json", "does not exist"),
        (str(tmp_path), "does not exist"),
        (f"{tmp_path}/no_end.json", "end-of-text"),
    ):
        with pytest.raises(UserError, match=word) as raised:
            load_tokenizer(name)
        assert "\n" not in str(raised.value)
        assert name in str(raised.value)


def test_a_hugging_face_name_is_fetched_from_the_hub_and_an_unknown_one_gets_one_line(tmp_path: Path) -> None:
    content = train_tokenizer(TEXTS, 270).to_str().encode()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = self.path == "/owner/model/resolve/main/tokenizer.json"
            self.send_response(200 if known else 404)
            self.send_header("ETag", '"0123"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content) if known else 0))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    program = "import sys; from lrtrain.data.tokenizer import *; print(vocabulary_size(load_tokenizer(sys.argv[1])))"
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        known, unknown = (
            subprocess.run([sys.executable, "-c", program, name], env=environment, capture_output=True, text=True)
            for name in ("owner/model", "owner/other")
        )
        server.shutdown()
    assert known.stdout == "270\n", known.stderr
    last = unknown.stderr.strip().splitlines()[-1]
    assert last.startswith("lrtrain.runtime.errors.UserError: tokenizer owner/other")
    assert "Hugging Face hub" in last
