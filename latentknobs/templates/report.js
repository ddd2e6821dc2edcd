// Tables sort by the column whose heading is clicked; a token that is tapped or clicked shows its option in the legend.
for (const heading of document.querySelectorAll("thead th:not(:empty)")) {
  heading.tabIndex = 0;
  heading.title = "Sort";
  const sort = () => {
    const table = heading.closest("table"), column = heading.cellIndex, up = heading.ariaSort === "descending";
    const value = (row) => parseFloat(row.cells[column]?.textContent.replace("−", "-"));
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return isNaN(x) - isNaN(y) || (up ? x - y : y - x) || 0;
    });
    for (const other of table.querySelectorAll("th")) other.ariaSort = null;
    heading.ariaSort = up ? "ascending" : "descending";
    table.tBodies[0].append(...rows);
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
const shown = document.querySelector(".legend output");
document.addEventListener("click", (event) => {
  if (shown && event.target.matches(".response span")) shown.textContent = event.target.title;
});
