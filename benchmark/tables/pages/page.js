"use strict";
// Everything is visible without this script: it sorts the leaderboard and opens the target of a link.
const valueOf = (row, column) => row.cells[column].dataset.value ?? "";

function compared(column, text, sign) {
  return (one, other) => {
    const [a, b] = [valueOf(one, column), valueOf(other, column)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (text ? (a < b ? -1 : a > b ? 1 : 0) : Number(a) - Number(b));
  };
}

function sort(table, rows, head) {
  const before = head.getAttribute("aria-sort");
  const opposite = { ascending: "descending", descending: "ascending" };
  const order = before ? opposite[before] : head.dataset.first;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const by = compared(head.cellIndex, head.cellIndex === 0, order === "ascending" ? 1 : -1);
  for (const [body, bodyRows] of rows) body.append(...[...bodyRows].sort(by));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const bodies = [...table.tBodies].filter((body) => !body.classList.contains("group"));
  const rows = new Map(bodies.map((body) => [body, [...body.rows]]));
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, rows, head));
    head.append(button);
  }
}

function reveal(id) {
  const target = id && document.getElementById(id);
  if (!target) return;
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  target.scrollIntoView();
}

if (matchMedia("(min-width: 60rem)").matches)
  for (const details of document.querySelectorAll("details.wide")) details.open = true;
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link) setTimeout(() => reveal(link.getAttribute("href").slice(1)));
});
reveal(location.hash.slice(1));
