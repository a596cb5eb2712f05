// What every page has: small helpers, tables, figures, and data that is read when it is looked at.
// `explorer.script` joins the scripts, in its order, in one function.
const $ = id => document.getElementById(id);
const SHAPES = ["svg", "path", "polygon", "circle", "text", "rect", "line", "title"];
const make = (tag, attributes = {}, ...children) => {
  const e = SHAPES.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
};
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const brief = v => v == null ? "–" : String(+v.toPrecision(3)).replace("-", "−");
const fromTo = line => `from ${brief(line.mean.find(v => v != null))} to ${brief(line.mean.findLast(v => v != null))}`;
const data = JSON.parse($("data").textContent);

async function read(id) {
  // A run or chart: inside the page, or of the machine that serves it.
  const inside = $(id);
  if (inside) return JSON.parse(inside.textContent);
  const answer = await fetch(`explore.data/${id}.json`).catch(() => null);
  return answer?.ok ? answer.json() : { error: "it cannot be had from the server." };
}

function sized(canvas, width, height) {
  // So large on the page, and sharp on every screen. Returns what draws on it.
  const context = canvas.getContext("2d"), scale = devicePixelRatio;
  canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  context.scale(scale, scale);
  return context;
}

function nameCells(holder, labels, size, { side = "top", least = 12, from = 0, hit = [] } = {}) {
  // Names beside cells of this size: as many as have room, those that were hit marked.
  const skip = Math.max(1, Math.ceil(least / size));
  holder.replaceChildren(...labels.flatMap((name, i) => {
    if (i % skip) return [];
    const marked = hit.includes(name), span = make("span", { title: marked ? "changed" : name, class: marked ? "hit" : "" }, `${marked ? "▸ " : ""}${name}`);
    span.style[side] = `${from + (i + .5) * size}px`;
    return [span];
  }));
}

function whenVisible(element, then) {
  // Once it is on the screen, or nearly, or printed.
  const now = () => { watcher.disconnect(); removeEventListener("beforeprint", now); then(); };
  const watcher = new IntersectionObserver(entries => { if (entries.some(e => e.isIntersecting)) now(); }, { rootMargin: "500px" });
  watcher.observe(element);
  addEventListener("beforeprint", now);
}

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
  const find = table.closest(".numbers").querySelector("[data-find]");
  const filter = () => {
    const wanted = find.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  };
  find.addEventListener("input", filter);
  addEventListener("pageshow", filter);   // browsers restore what was wanted
}
