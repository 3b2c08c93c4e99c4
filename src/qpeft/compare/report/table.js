"use strict";
// Every table gets sorting by its headers; the longer ones a field that filters their rows.
for (const sheet of document.querySelectorAll(".sheet")) {
  const body = sheet.querySelector("tbody");
  const rows = [...body.rows];
  const heads = [...sheet.querySelectorAll("thead th")];

  const order = (row, column) => {
    const value = row.cells[column].dataset.order;
    return value === undefined || value === "" || isNaN(value) ? value : Number(value);
  };

  const compare = (a, b, sign) => {
    const missing = (value) => value === undefined || value === "";
    if (missing(a) || missing(b)) return missing(a) - missing(b); // last, whichever way
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  };

  // up, down, and back to the order of the study
  const sort = (column) => {
    const next = { ascending: "descending", descending: undefined }[heads[column].ariaSort ?? ""];
    const way = heads[column].ariaSort ? next : "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    if (way) heads[column].setAttribute("aria-sort", way);
    const sign = way === "descending" ? -1 : 1;
    const sorted = way ? [...rows].sort((a, b) => compare(order(a, column), order(b, column), sign)) : rows;
    body.append(...sorted);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });

  if (rows.length > 5) {
    const tools = document.createElement("div");
    tools.className = "tools";
    const label = document.createElement("label");
    const field = document.createElement("input");
    const told = document.createElement("output");
    field.type = "search";
    label.append("Filter rows ", field);
    tools.append(label, told);
    sheet.prepend(tools);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      const fits = (row) => words.every((word) => row.textContent.toLowerCase().includes(word));
      rows.forEach((row) => row.classList.toggle("is-out", !fits(row)));
      told.value = `${rows.filter(fits).length} of ${rows.length} rows`;
    });
  }
}
