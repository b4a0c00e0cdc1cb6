"""The prompts of `lrtrain generate`: of the command line, of standard input, or of a file."""

import json
import os
import sys
from pathlib import Path

from lrtrain.runtime.errors import UserError


def one_prompt(given: str | None) -> str:
    """`--prompt`, or all of standard input. Raises UserError where that is no text."""
    return (
        from_command_line("--prompt", given) if given is not None else _text(sys.stdin.buffer.read(), "standard input")
    )


def from_command_line(flag: str, given: str) -> str:
    """An argument as text, whatever the locale took its bytes for. Raises UserError where they are no UTF-8."""
    try:
        return _text(os.fsencode(given), flag)
    except UnicodeEncodeError:
        return _text(given.encode("utf-8", "surrogateescape"), flag)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not text in UTF-8 ({error}): convert it first") from error


def prompts_in(file: str) -> list[tuple[int, str]]:
    """The number of each line of a JSON-lines file, from 1, and its prompt; empty lines are left out.

    Raises:
        UserError: the file cannot be read, or a line holds no prompt.
    """
    try:
        lines = Path(file).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"--prompts {file}: {error.strerror or error}; name a file of JSON lines") from error
    found = [
        (number, _prompt_of(line, f"{file} line {number}")) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise UserError(f'--prompts {file}: holds no line; a line is {{"prompt": "a text to continue"}}')
    return found


def _prompt_of(line: bytes, where: str) -> str:
    try:
        content = json.loads(line.decode("utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("prompt"), str):
            raise ValueError('an object with "prompt", a string, is expected')
        content["prompt"].encode()
    except json.JSONDecodeError as error:
        raise UserError(f'{where} is no JSON ({error}); a line is {{"prompt": "a text to continue"}}') from error
    except ValueError as error:  # of bytes that are no UTF-8, and of half a surrogate pair
        raise UserError(f'{where}: {error}; a line is {{"prompt": "a text to continue"}}') from error
    return str(content["prompt"])
