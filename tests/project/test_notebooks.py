"""The notebooks run, with small parameters, in one kernel; what they show is drawn, and their pages need no network."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode

from notebooks.execute import NOTEBOOKS, TAG, execute, running_kernel, set_parameters
from notebooks.page import with_formulas, write_page

DOCS = Path(__file__).parents[2] / "docs"
SMALL = {"vocabulary": 512, "block_size": 32, "batch_size": 4, "heads": 2}
DECODER = {**SMALL, "width": 32, "depth": 1, "ffn_width": 48}
QUICK: dict[str, dict[str, Any]] = {
    "01": {**DECODER, "steps": 4, "every": 2, "batches": 2, "measured": 2, "new_tokens": 4},
    "02": {"steps": 4, "rates": [0.02]},
    "03": {**DECODER, "steps": 4},
    "04": {**DECODER, "steps": 2, "every": 1, "batches": 1, "seeds": [0, 1]},
    "05": {
        **{"resamples": 20, "vocabulary": 512, "block_size": 16, "batch_size": 4},
        **{"budgets": [1e8], "size_indices": [1, 2, 3], "head_width": 4, "tokens_per_parameter": (0.01, 1000.0)},
    },
    "06": {
        **{**SMALL, "pretrained": "", "hidden": 32, "ffn": 48, "layers": 1, "pretraining": 2},
        **{"ratios": [0.5, 0.25], "steps": 2, "batches": 2},
    },
}
"""Beginning of a notebook's name -> parameters with which it takes a second or two; folders are added."""

PICTURES = {"01": 3, "02": 3, "03": 5, "04": 2, "05": 4, "06": 2}


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One process for all notebooks, so that torch is imported once."""
    with running_kernel() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


def outputs(content: NotebookNode) -> list[Any]:
    return [output for cell in content.cells for output in cell.get("outputs", [])]


def printed(content: NotebookNode) -> str:
    return "".join(output.text for output in outputs(content) if output.get("name") == "stdout")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_runs_with_small_parameters_and_its_page_stands_alone(
    notebook: Path, kernel: KernelManager, folder: Path
) -> None:
    number = notebook.name[:2]
    places = {"data": str(folder / "data/stdlib-512"), "source": [str(DOCS)]}
    if number == "02":
        places = {}
    if number == "06":
        places |= {"data": str(folder / "data"), "out": str(folder / "out")}
    content = execute(notebook, kernel, QUICK[number] | places)
    complaints = "".join(output.text for output in outputs(content) if output.get("name") == "stderr")
    assert not complaints
    pictures = [output for output in outputs(content) if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[number]
    check = globals().get(f"check_{number}")
    if check is not None:
        check(printed(content))
    page = write_page(content, folder / f"{notebook.stem}.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == PICTURES[number]
    assert not re.findall(r"<(?:script|link)|(?:src|@import)\W+(?:https?:)?//", page)
    assert "widget-view" not in page
    assert "No description has been provided" not in page
    assert f"<title>{notebook.stem}" not in page


def check_02(text: str) -> None:
    largest = {line.split()[0]: float(line.split()[1]) for line in text.splitlines()[1:5]}
    assert largest["Spectron"] <= 1
    assert largest["LoRA-Muon"] <= 1
    assert largest["AdamW"] > 1


def check_03(text: str) -> None:
    assert "function-preserving: s = " in text
    before, after = re.findall(r"function-preserving +max.+: (\S+) before the retraction, (\S+) after", text)[0]
    assert float(after) < 1e-5 < float(before)


def check_06(text: str) -> None:
    assert "a tiny random Llama" in text
    differences = [float(number) for number in re.findall(r"differ by at most (\S+)", text)]
    assert len(differences) == 2
    assert max(differences) < 1e-3


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_is_committed_without_outputs_and_says_what_its_figures_show(notebook: Path) -> None:
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]
    assert sum(TAG in cell.metadata.get("tags", []) for cell in code) == 1
    assert content.cells[0].source.startswith("# ")
    for place, cell in enumerate(content.cells):
        if cell.cell_type == "code" and "\nplt.show()" in cell.source:
            after = [one.source for one in content.cells[place + 1 : place + 3] if one.cell_type == "markdown"]
            assert any(text.startswith("**What to see.**") for text in after), cell.source


def test_every_notebook_has_quick_parameters() -> None:
    assert [notebook.name[:2] for notebook in NOTEBOOKS] == [*QUICK] == [*PICTURES]


def test_a_parameter_that_a_notebook_does_not_have_is_refused() -> None:
    content = nbformat.read(NOTEBOOKS[0], as_version=4)
    with pytest.raises(ValueError, match=r"no parameter step; it has .*steps"):
        set_parameters(content, {"step": 1})


def test_formulas_are_drawn_and_code_is_left() -> None:
    text = with_formulas("of `$x$` and $\\|W\\|_2$:\n\n$$a \\le b$$\n\n```sh\necho $HOME $PWD\n```\nit costs \\$5")
    assert text.count("<svg") == 2
    assert "`$x$`" in text
    assert "echo $HOME $PWD" in text
    assert '<div class="formula"><svg' in text
    with pytest.raises(ValueError, match="cannot be drawn"):
        with_formulas("$\\nosuchcommand x$")
