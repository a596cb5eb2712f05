// What every page has: small helpers, sortable tables, the look whether served results changed.
// `explorer.script` joins the scripts, in this order: explorer, plane, curves, controls; in one function.
const $ = id => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const svg = ["svg", "path", "polygon", "circle", "text", "rect", "line", "title"].includes(tag);
  const e = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
};
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const brief = v => v == null ? "–" : String(+v.toPrecision(3)).replace("-", "−");

// ---- tables -------------------------------------------------------------------------------------
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", event => {
    const th = event.target.closest("th");
    if (!th) return;
    const up = th.getAttribute("aria-sort") !== "ascending", column = th.cellIndex;
    const key = row => { const c = row.cells[column]; return c.dataset.v == null ? c.textContent : +c.dataset.v; };
    const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b)));
    for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  });
  const find = table.closest("details").querySelector("[data-find]");
  find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

// ---- figures ------------------------------------------------------------------------------------
for (const button of document.querySelectorAll(".enlarge"))
  button.addEventListener("click", () => button.setAttribute("aria-expanded", button.getAttribute("aria-expanded") !== "true"));
// The picture stands once in the page; its link gets it when it is wanted.
for (const link of document.querySelectorAll(".save"))
  link.addEventListener("click", () => { link.href = link.closest("figure").querySelector("img").src; });

// ---- a page that is served looks whether its results changed ------------------------------------
if ("live" in document.body.dataset) {
  let seen = null;
  setInterval(async () => {
    const answer = await fetch("version").catch(() => null);
    const now = answer && answer.ok ? await answer.text() : seen;
    if (seen !== null && now !== seen) location.reload();
    seen = now;
  }, 2000);
}
