"use strict";
// Tables can be sorted by a click on a heading.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = new Intl.Collator("en", { numeric: true });
      const rows = [...body.rows].sort((one, two) => {
        const a = one.cells[column], b = two.cells[column];
        if (a.dataset.v === undefined || b.dataset.v === undefined) {
          const missing = (a.dataset.v === undefined) - (b.dataset.v === undefined);  // missing numbers stay below
          return missing || (up ? 1 : -1) * order.compare(a.textContent, b.textContent);
        }
        return (up ? 1 : -1) * (a.dataset.v - b.dataset.v);
      });
      body.append(...rows);
    });
  });
}
// A figure shows the row of its data nearest to the pointer.
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const reach = JSON.parse(svg.dataset.hover), picture = svg.parentElement;
  const table = picture.parentElement.querySelector("table");
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = [...table.tBodies[0].rows].filter((row) => row.cells[0].dataset.v !== undefined);
  const tip = document.createElement("div"), line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  tip.className = "tip";
  tip.setAttribute("aria-hidden", "true");
  line.setAttribute("stroke", "var(--soft)");
  line.setAttribute("stroke-width", "0.6");
  const leave = () => { tip.remove(); line.remove(); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const at = (event.clientX - box.left) * scale;
    if (at < reach.left - 4 || at > reach.right + 4 || !rows.length) return leave();
    const x = reach.from + (reach.to - reach.from) * (at - reach.left) / (reach.right - reach.left);
    const off = (row) => Math.abs(row.cells[0].dataset.v - x);
    const row = rows.reduce((best, each) => (off(each) < off(best) ? each : best));
    const found = reach.left + (reach.right - reach.left) * (row.cells[0].dataset.v - reach.from) / (reach.to - reach.from);
    for (const [name, value] of [["x1", found], ["x2", found], ["y1", reach.top], ["y2", reach.bottom]]) line.setAttribute(name, value);
    svg.append(line);
    tip.replaceChildren(...[...row.cells].map((cell, column) => {
      const entry = document.createElement("div");
      entry.textContent = `${names[column]}: ${cell.textContent}`;
      return entry;
    }));
    picture.append(tip);
    const right = found / scale + 12;
    tip.style.left = right + tip.offsetWidth > box.width ? `${Math.max(0, found / scale - tip.offsetWidth - 12)}px` : `${right}px`;
  });
}
// A legend's entry sets its lines off from the others.
for (const entry of document.querySelectorAll(".legend li[data-series]")) {
  const groups = document.querySelectorAll(".picture g[data-series]");
  const show = (on) => groups.forEach((group) => group.classList.toggle("faded", on && group.dataset.series !== entry.dataset.series));
  entry.addEventListener("pointerenter", () => show(true));
  entry.addEventListener("pointerleave", () => show(false));
}
