"""What the README shows works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lrtrain.cli.main import COMMANDS, main
from lrtrain.config.plan_parser import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURED = ("fit", "validate", "test")
"""Commands whose options are the configuration's keys."""


def shown() -> list[str]:
    """The `lrtrain` commands of code blocks and of code within a line, each without `lrtrain`."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)).replace("\\\n", " ")
    inline = re.findall(r"`(lrtrain [a-z][^`]*)`", README)
    found = [line.partition("lrtrain ")[2] for line in [*blocks.splitlines(), *inline] if "lrtrain " in line]
    return sorted({command for command in found if command.split()[0] in COMMANDS})


def options_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What the command's own help lists; that of its parts too, where it has some."""
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    parts = re.search(r"\{([a-z,]+)\}", text) if " " not in command else None
    names = set(re.findall(r"--[a-z][\w-]*", text))
    return names.union(*(options_of(f"{command} {part}", capsys) for part in (parts[1].split(",") if parts else [])))


def test_the_plain_loop_trains_and_needs_no_lightning() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    program = f"""
import sys, torch
torch.manual_seed(0)
batches = [torch.arange(2 * 17).view(2, 17)] * 8
{code.replace("next_token_loss(", "print(float(loss := next_token_loss(").replace(".backward()", ")); loss.backward()")}
assert "lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(line) for line in done.stdout.split()]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"])
def test_links_lead_to_files(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(link).is_file(), link


def test_every_file_and_command_that_it_names_exists() -> None:
    for path in re.findall(r"(?:configs|docs)/[\w./-]+\.(?:ya?ml|md|png)", README):
        assert (ROOT / path).is_file(), path
    for command in re.findall(r"`?lrtrain (\w+) ", README):
        assert command in COMMANDS, command


@pytest.mark.parametrize("command", shown())
def test_every_command_that_it_shows_is_one_that_lrtrain_takes(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = shlex.split(command.replace("$seed", "0"), comments=True)
    if name in CONFIGURED:
        monkeypatch.chdir(ROOT)
        parse(arguments)  # refuses an unknown key, a value of another type, and a file that is not there
    else:
        given = {argument for argument in arguments if argument.startswith("--")}
        assert given <= options_of(name, capsys)


def test_every_option_that_it_names_is_one_of_some_command(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = {"--nproc-per-node", "--nnodes", "--backend-store-uri"}  # torchrun's and MLflow's
    named = {name for code in re.findall(r"`(?!``)([^`]+)`", README) for name in re.findall(r"--[a-z][\w-]*", code)}
    known = set().union(*(options_of(command, capsys) for command in COMMANDS if command not in CONFIGURED))
    parser, _ = parse(["--model.decoder=lrtrain.nn.Decoder", "--config", str(ROOT / "configs/quickstart.yaml")])
    known |= {f"--{key.split('.')[0]}" for key in vars(parser.get_defaults())} | {"--config", "--print_config"}
    assert named - known - elsewhere == set()
