"use strict";
// Tables are sorted by clicking on a header; longer ones have a field that filters their rows.
for (const sheet of document.querySelectorAll(".sheet")) {
  const body = sheet.querySelector("tbody");
  const rows = [...body.rows];
  const heads = [...sheet.querySelectorAll("thead th")];

  const order = (row, column) => {
    const text = row.cells[column].textContent.trim();
    if (!heads[column].classList.contains("number")) return text;
    const number = parseFloat(text.replace(/^[<>]\s*|,/g, ""));
    return isNaN(number) ? "" : number;
  };

  const compare = (a, b, sign) => {
    const missing = (value) => value === "" || value === "\u2013";
    if (missing(a) || missing(b)) return missing(a) - missing(b); // last in both directions
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  };

  // ascending, descending, and back to the original order
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
    const count = document.createElement("output");
    field.type = "search";
    label.append("Filter rows ", field);
    tools.append(label, count);
    sheet.prepend(tools);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      const fits = (row) => words.every((word) => row.textContent.toLowerCase().includes(word));
      rows.forEach((row) => row.classList.toggle("is-out", !fits(row)));
      count.value = `${rows.filter(fits).length} of ${rows.length} rows`;
    });
  }
}
