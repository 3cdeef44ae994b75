"use strict";

const collator = new Intl.Collator("en", { numeric: true });

/** Sort the rows by a column, by the numbers of its cells or else their text; cells without stay last. */
function sort(table, column, sign) {
  const rows = [...table.tBodies[0].rows];
  const isNumeric = rows.some((row) => "value" in row.cells[column].dataset);
  const keyed = rows.map((row) => {
    const { dataset, textContent } = row.cells[column];
    return [isNumeric ? dataset.value : textContent.trim(), row];
  });
  const compare = isNumeric ? (a, b) => a - b : collator.compare;
  keyed.sort(([a], [b]) => (a && b ? sign * compare(a, b) : !a - !b));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function addSorting(table) {
  const headings = [...table.tHead.rows[0].cells];
  table.classList.add("sorts");
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    const arrow = document.createElement("span");
    arrow.ariaHidden = "true";
    arrow.textContent = " ↕";
    button.type = "button";
    button.append(...heading.childNodes, arrow);
    heading.append(button);
    heading.ariaSort = "none";
    button.addEventListener("click", () => {
      const order = heading.ariaSort === "ascending" ? "descending" : "ascending";
      for (const other of headings) {
        other.ariaSort = other === heading ? order : "none";
        other.querySelector("button span").textContent = other !== heading ? " ↕" : order === "ascending" ? " ↑" : " ↓";
      }
      sort(table, column, order === "ascending" ? 1 : -1);
    });
  });
}

function addFilter(input) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const count = input.parentElement.querySelector("[role=status]");
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => texts.get(row).includes(word));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  input.addEventListener("input", filter);
  input.parentElement.hidden = false;
  filter();
}

/** Copy what a code element holds; pages that are not from a secure address have the old way alone. */
async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) return "Selected; copy it by Ctrl-C";
  }
  return "Copied";
}

function addCopying(button) {
  const status = button.parentElement.querySelector("[role=status]");
  button.hidden = false;
  button.addEventListener("click", async () => {
    status.textContent = await copy(document.getElementById(button.dataset.copies));
  });
}

document.querySelectorAll("table[data-sortable]").forEach(addSorting);
document.querySelectorAll("input[data-filters]").forEach(addFilter);
document.querySelectorAll("button[data-copies]").forEach(addCopying);
