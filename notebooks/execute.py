"""Executes the notebooks and renders each as a page that opens without a network.

python -m notebooks.execute                     # all; pages in build/notebooks
python -m notebooks.execute 02 03 --out pages   # those whose names begin so
"""

import argparse
import ast
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from notebooks.page import write_page

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TAG = "parameters"
"""Tag of the one cell of a notebook that assigns its parameters."""

SECONDS = 900
"""For one cell, and for the kernel to answer."""


def execute(notebook: Path, kernel: KernelManager, values: Mapping[str, Any] | None = None) -> NotebookNode:
    """A notebook with its outputs.

    Args:
        notebook: The file; it is not written.
        kernel: One that runs; what an earlier notebook defined in it is forgotten.
        values: Parameters that are to differ from what the cell tagged `parameters` assigns.

    Raises:
        ValueError: the notebook has no such parameter.
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    content = nbformat.read(notebook, as_version=4)
    set_parameters(content, values or {})
    content.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    NotebookClient(content, timeout=SECONDS, startup_timeout=SECONDS, km=kernel).execute()
    del content.cells[0]
    return content


@contextmanager
def running_kernel() -> Iterator[KernelManager]:
    """A process that executes cells, in the folder of the notebooks."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(FOLDER), extra_arguments=["--log-level=ERROR"])
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def set_parameters(content: NotebookNode, values: Mapping[str, Any]) -> None:
    """Puts a cell that assigns the values behind the one tagged `parameters`.

    Raises:
        ValueError: that assigns no parameter of a name.
    """
    places = [place for place, cell in enumerate(content.cells) if TAG in cell.metadata.get("tags", [])]
    if len(places) != 1:
        raise ValueError(f"{len(places)} cells are tagged {TAG!r}: one has to be")
    there = parameters(content.cells[places[0]].source)
    if unknown := values.keys() - there:
        raise ValueError(f"the notebook has no parameter {min(unknown)}; it has {', '.join(sorted(there))}")
    if values:
        lines = [f"{name} = {value!r}" for name, value in values.items()]
        content.cells.insert(places[0] + 1, nbformat.v4.new_code_cell("\n".join(lines)))


def parameters(source: str) -> set[str]:
    """Names that a cell assigns."""
    targets = (one for line in ast.parse(source).body if isinstance(line, ast.Assign) for one in line.targets)
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m notebooks.execute", description="Executes and renders notebooks.")
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 02; all when none is given")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "build/notebooks", help="folder of the pages")
    arguments = parser.parse_args()
    chosen = [one for one in NOTEBOOKS if not arguments.names or one.name.startswith(tuple(arguments.names))]
    if not chosen:
        parser.error(f"no notebook begins with {' or '.join(arguments.names)}")
    for notebook in chosen:
        began = time.monotonic()
        with running_kernel() as kernel:
            page = write_page(execute(notebook, kernel), arguments.out / f"{notebook.stem}.html")
        print(f"{page}  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
