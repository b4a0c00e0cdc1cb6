// Sorting: a click on a heading orders the rows by that column, another click the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const [head, ...rows] = table.rows;
  const asNumber = (text) => (/^[-+]?(\d|\.\d|∞|inf)/i.test(text) ? parseFloat(text.replace(/[,\s]/g, "")) : NaN);
  const number = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? parseFloat(cell.dataset.value) : asNumber(cell.textContent);
  };
  [...head.cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = [...rows].sort((a, b) => {
        const [x, y] = [number(a, column), number(b, column)];
        if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what has no number comes last both ways
        const text = a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
        return (down ? -1 : 1) * (isNaN(x) ? text : x - y);
      });
      (table.tBodies[0] || table).append(...order);
    });
  });
}
