"""The tokenizer as transformers loads it: the same tokens for the same text as in training."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lrtrain.checkpoint.huggingface.imported import Imported
from lrtrain.data.tokenizer import end_of_text
from lrtrain.runtime.errors import UserError

PADDING = ("<pad>", "<|pad|>", "[PAD]", "<|padding|>")


def write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path, imported: Imported | None = None) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    A document began after an end-of-text token, so that this is the beginning of a text as well as its end. What the
    tokenizer itself puts around a text (`<s>`) was left out in training, and is left out of the file. A model that is
    still as it was imported keeps what its tokenizer had of both.

    Raises:
        UserError: the tokenizer has no end-of-text token.
        OSError: the disk is full or refuses.
    """
    content = json.loads(tokenizer.to_str())
    kept = imported.special if imported is not None else {}
    if tokenizer.num_special_tokens_to_add(False) and not kept:
        content["post_processor"] = None
    special = dict(kept) or {"bos_token": end_of_text_token(tokenizer), "eos_token": end_of_text_token(tokenizer)}
    names = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    if unknown := content["model"].get("unk_token"):
        special.setdefault("unk_token", unknown)
    if not kept and (padding := next((token for token in PADDING if token in names), None)):
        special["pad_token"] = padding
    template = {"chat_template": imported.chat_template} if imported is not None and imported.chat_template else {}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(token["id"]): _without_id(token) for token in content["added_tokens"]},
        **special,
        **template,
    }
    for name, value in (
        ("tokenizer.json", content),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def end_of_text_token(tokenizer: Tokenizer) -> str:
    """The token that separates documents."""
    return str(tokenizer.id_to_token(end_of_text(tokenizer)))


def check_tokens(tokenizer: Tokenizer, folder: Path, text: str) -> None:
    """Compares the tokens and the text again of transformers' tokenizer with ours.

    Raises:
        UserError: they differ.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    made = theirs(text, add_special_tokens=False)["input_ids"]
    if made != ids or theirs.decode(ids) != tokenizer.decode(ids, skip_special_tokens=False):
        raise UserError(
            f"export: transformers' tokenizer makes {made[:8]} … of a text and ours {ids[:8]} …: "
            "the model would not read what it was trained on"
        )


def _without_id(token: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key != "id"}
