"""Columns of text."""

import io
from collections.abc import Sequence

WIDEST = 100_000
"""Characters of a line, so that none is ever wrapped or cut."""


def table(rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Formats rows, the first with the headings; columns of numbers are right-aligned if `numbers`."""
    from rich.console import Console  # here: commands start without it
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for index in range(max(map(len, rows))):
        cells = [row[index] for row in rows[1:] if index < len(row)]
        right = numbers and index > 0 and all(not cell or cell[0].isdigit() for cell in cells)
        grid.add_column(justify="right" if right else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=WIDEST, color_system=None, force_jupyter=False).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
