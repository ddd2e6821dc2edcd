// Tables sort by the column whose heading is clicked: down, up, and as they were; a token that is tapped or clicked shows its
// option in the legend.
const number = (row, column) => parseFloat(row.cells[column]?.textContent.replace("−", "-").replace("<", ""));
for (const body of document.querySelectorAll("tbody")) [...body.rows].forEach((row, place) => { row.place = place; });
for (const heading of document.querySelectorAll("thead th:not(:empty)")) {
  heading.tabIndex = 0;
  heading.title = "Sort";
  const sort = () => {
    const table = heading.closest("table"), column = heading.cellIndex;
    const next = { descending: "ascending", ascending: null }[heading.ariaSort];
    const way = next === undefined ? "descending" : next, sign = { descending: -1, ascending: 1 }[way] ?? 0;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [number(a, column), number(b, column)];
      return (sign && (isNaN(x) - isNaN(y) || sign * (x - y))) || a.place - b.place;
    });
    for (const other of table.querySelectorAll("th")) other.ariaSort = null;
    heading.ariaSort = way;
    table.tBodies[0].append(...rows);
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
const shown = document.querySelector(".legend output");
document.addEventListener("click", (event) => {
  if (shown && event.target.matches(".response span")) shown.textContent = event.target.title;
});
