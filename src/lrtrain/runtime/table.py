"""Columns of text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Rows, the first with the headings; columns of numbers to the right if `numbers`, all others to the left."""
    width = max(map(len, rows))
    columns = [[row[i] if i < len(row) else "" for row in rows] for i in range(width)]
    padded = []
    for index, column in enumerate(columns):
        size = max(map(len, column))
        right = numbers and index > 0 and all(not cell or cell[0].isdigit() for cell in column[1:])
        padded.append([cell.rjust(size) if right else cell.ljust(size) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*padded, strict=True))
