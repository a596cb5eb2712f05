// The step × frame plane: its state, its pictures, panes and grids.
if (!$("plane")) return;

// ---- data and state -----------------------------------------------------------------------------
const data = JSON.parse($("data").textContent);
const views = data.views, many = Math.max(data.steps, ...data.heats.map(h => Math.max(...h.steps) + 1));
const steps = views.length
  ? [...new Set(views.flatMap(v => v.steps))].sort((a, b) => a - b)
  : Array.from({ length: many }, (_, i) => i);
const groups = [...new Set(views.map(v => v.group))];
const EACH = "\u0000each";
const MOST = 6;
const state = { step: 0, frame: 0, shown: [], group: groups[0], difference: "none", back: false, wide: false, playing: null };
const pictures = new Map();          // view → loaded image
const frames = () => Math.max(1, ...state.shown.map(v => views[v].frames.length));
const row = (view, step = steps[state.step]) => Math.max(0, view.steps.findLastIndex(s => s <= step));
const column = view => Math.min(state.frame, view.frames.length - 1);
const VIDEO = -1, RIGHT = -2;

function sheetOf(number) {
  // Decoded when it is first looked at.
  if (!pictures.has(number)) {
    const picture = new Image(), source = views[number].sheet;
    picture.onload = () => { if (state.shown.includes(number)) draw(); };
    picture.onerror = () => { views[number].broken = true; say(`The pictures of ${views[number].label} are missing.`); };
    picture.src = source.startsWith("#") ? $(source.slice(1)).textContent : source;
    pictures.set(number, picture);
  }
  const picture = pictures.get(number);
  return picture.complete && picture.naturalWidth ? picture : null;
}

function paint(context, number, at, frame, x, y, w, h) {
  // One cell: a step's estimate (at = its row), the video or the right answer; as a difference if asked for.
  const view = views[number], picture = sheetOf(number);
  if (!picture) return;
  const [cw, ch] = view.cell;
  const line = at === VIDEO ? view.steps.length : at === RIGHT ? view.steps.length + 1 : at;
  const put = (image, r) => context.drawImage(image, frame * cw, r * ch, cw, ch, x, y, w, h);
  context.imageSmoothingEnabled = w < cw;
  context.imageSmoothingQuality = "high";
  const end = state.difference === "end", first = state.difference === "first" ? state.shown[0] : null;
  if (at < 0 || (!end && first == null)) return put(picture, line);
  const other = end ? picture : sheetOf(first);
  if (!other) return;
  const against = end ? view.steps.length - 1 : row(views[first], view.steps[at]);
  const buffer = paint.buffer ??= document.createElement("canvas");
  buffer.width = w; buffer.height = h;
  const c = buffer.getContext("2d");
  c.imageSmoothingEnabled = context.imageSmoothingEnabled;
  c.drawImage(picture, frame * cw, line * ch, cw, ch, 0, 0, w, h);
  c.globalCompositeOperation = "difference";
  c.drawImage(other, frame * cw, against * ch, cw, ch, 0, 0, w, h);
  context.fillStyle = "#000";
  context.fillRect(x, y, w, h);
  context.globalAlpha = .22;
  put(picture, line);
  context.globalAlpha = 1;
  context.globalCompositeOperation = "lighter";
  context.drawImage(buffer, x, y);
  context.globalCompositeOperation = "source-over";
}

// ---- the axis: step ↔ place ---------------------------------------------------------------------
const LEFT = 46, GAP = 10;
let width = 0, band = 0;             // of the plot, of one step
const place = step => {              // the middle of a step; between shown steps in proportion
  let i = steps.findIndex(s => s >= step);
  if (i < 0) i = steps.length - 1;
  const part = i > 0 && steps[i] > step ? (steps[i] - step) / (steps[i] - steps[i - 1]) : 0;
  return LEFT + (i - part + .5) * band;
};
const stepAt = x => clamp(Math.floor((x - LEFT) / band), 0, steps.length - 1);

// ---- panes --------------------------------------------------------------------------------------
const colour = i => `s${i % 5}`;
const canvasOf = (view, about) => {
  const canvas = make("canvas", { role: "img", class: view.cell[0] <= 64 ? "exact" : "" });
  [canvas.width, canvas.height] = view.cell;
  return make("div", { class: about }, canvas, make("p"));
};

function changes(marks) {
  const told = [];
  if (marks.steps.length) told.push(`noise at step ${marks.steps.join(", ")}`);
  if (marks.frames.length) told.push(`noise in frame ${marks.frames.join(", ")}`);
  if (marks.layers.length) told.push(`seeds averaged after layer ${marks.layers.join(", ")} at step ${marks.layer_steps.join(", ")}`);
  return told.join("; ");
}

function buildPanes() {
  const stage = $("stage");
  stage.replaceChildren(...state.shown.map((number, i) => {
    const view = views[number];
    const name = make("figcaption", {}, make("i", { class: `swatch ${colour(i)}` }), make("b", {}, title(view)));
    if (view.solved != null)
      name.append(make("span", { class: `mark ${view.solved ? "solved" : "unsolved"}` }, view.solved ? "✓ solved" : "✗ not solved"));
    const changed = changes(view.marks);
    if (changed) name.append(make("span", { class: "changed" }, changed));
    const aside = make("div", { class: "beside" });
    if (view.video) aside.append(canvasOf(view, "end"));
    if (view.reference) aside.append(canvasOf(view, "right"));
    const inside = make("div", { class: "pictures" }, canvasOf(view, "now"));
    if (aside.children.length) inside.append(aside);
    inside.style.setProperty("--shares", aside.children.length ? `minmax(0, ${view.reference ? 2.1 : 1.25}fr) minmax(0, 1fr)` : "minmax(0, 1fr)");
    const pane = make("figure", { class: "pane", "data-view": number }, name, inside);
    return pane;
  }));
  stage.style.setProperty("--panes", state.shown.length > 3 && state.shown.length !== 5 ? Math.ceil(state.shown.length / (state.shown.length > 4 ? 2 : 1)) : state.shown.length);
  stage.dataset.panes = state.shown.length;
  const prompts = [...new Set(state.shown.map(v => views[v].prompt).filter(Boolean))];
  $("prompt").textContent = prompts.length === 1 ? `“${prompts[0]}”` : "";
}

const title = view => state.group === EACH ? `${view.group}${groups.length < views.length ? `, ${view.label}` : ""}` : view.label;

function drawPanes() {
  for (const pane of $("stage").children) {
    const number = +pane.dataset.view, view = views[number], at = row(view), frame = column(view);
    const told = `frame ${view.frames[frame]}`;
    const parts = { now: [at, `x̂₀ · step ${view.steps[at]} · ${told}`, "Clean estimate"], end: [VIDEO, `final · ${told}`, "Final video"], right: [RIGHT, `a right answer · ${told}`, "A right answer"] };
    for (const [name, [line, text, alt]] of Object.entries(parts)) {
      const box = pane.querySelector(`.${name}`);
      if (!box) continue;
      const canvas = box.firstChild;
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      paint(context, number, line, frame, 0, 0, canvas.width, canvas.height);
      canvas.setAttribute("aria-label", `${alt} of ${view.label}, ${name === "now" ? `step ${view.steps[at]}, ` : ""}${told}`);
      box.lastChild.textContent = text;
    }
  }
}

// ---- grids: frames × steps ----------------------------------------------------------------------
function buildGrids() {
  $("grids").replaceChildren(...state.shown.map((number, i) => {
    const view = views[number];
    const h3 = make("h3", {}, make("span", {}, `${state.shown.length > 1 ? `${title(view)}: ` : ""}x̂₀, frames × steps`));
    const canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": `All clean estimates of ${view.label}: ${view.frames.length} frames by ${view.steps.length} steps. Arrow keys move through them.` });
    const cells = make("div", { class: "cells" }, make("div", { class: "rows", "aria-hidden": "true" }), canvas, make("div", { class: "here" }));
    const lane = make("div", { class: "lane grid", "data-view": number }, h3, cells);
    const pick = event => {
      const spot = lane.layout, box = canvas.getBoundingClientRect();
      const r = clamp(Math.floor((event.clientY - box.top - spot.top) / spot.height), 0, spot.rows.length - 1);
      set({ step: stepAt(event.clientX - box.left), frame: spot.rows[r] });
    };
    canvas.addEventListener("pointerdown", event => { stop(); pick(event); });
    canvas.addEventListener("pointermove", event => { if (event.buttons) pick(event); });
    return lane;
  }));
}

function layGrid(lane) {
  // Where its cells lie. Where steps are too narrow for a picture, one stands for its neighbours.
  const view = views[+lane.dataset.view], [cw, ch] = view.cell, least = 17;
  const thin = Math.max(1, Math.ceil(least / band)), wide = band * thin;
  let w = Math.max(4, Math.min(wide - 2, state.wide ? wide : Math.max(20, 320 / view.frames.length) * cw / ch));
  if (cw <= 64 && w * devicePixelRatio >= cw) w = Math.floor(w * devicePixelRatio / cw) * cw / devicePixelRatio;
  const h = w * ch / cw, most = state.wide ? 99 : Math.max(2, Math.floor(330 / (h + 2)));
  const every = Math.ceil(view.frames.length / most);
  const rows = view.frames.map((_, f) => f).filter(f => f % every === 0 || (f === view.frames.length - 1 && every > 1));
  const marked = view.marks.steps.length ? 9 : 0;
  lane.layout = { thin, wide, w, h, rows, top: marked, height: h + 2 };
  const canvas = lane.querySelector("canvas");
  const total = rows.length * (h + 2) + marked;
  canvas.width = Math.round((width + LEFT) * devicePixelRatio);
  canvas.height = Math.round(total * devicePixelRatio);
  canvas.style.width = `${width + LEFT}px`;
  canvas.style.height = `${total}px`;
  const names = lane.querySelector(".rows");
  const label = f => make("span", view.marks.frames.includes(view.frames[f]) ? { class: "hit", title: "gets noise" } : {}, `${view.marks.frames.includes(view.frames[f]) ? "▸ " : ""}${view.frames[f]}`);
  names.replaceChildren(...rows.map((f, i) => {
    const span = label(f);
    span.style.top = `${marked + (i + .5) * (h + 2)}px`;
    return span;
  }));
}

function drawGrid(lane, whole) {
  const view = views[+lane.dataset.view], { thin, wide, w, h, rows, top, height } = lane.layout;
  const canvas = lane.querySelector("canvas"), context = canvas.getContext("2d"), scale = devicePixelRatio;
  if (whole) {
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = getComputedStyle(canvas).getPropertyValue("--bad");
    for (const step of view.marks.steps) {   // what was changed
      const x = place(step) * scale, half = Math.max(3, Math.min(6, band / 2)) * scale;
      context.beginPath();
      context.moveTo(x - half, 0); context.lineTo(x + half, 0); context.lineTo(x, 7 * scale);
      context.fill();
    }
  }
  const mine = Math.floor(state.step / thin);
  const drawn = whole ? Math.ceil(steps.length / thin) : null;
  const columns = whole ? [...Array(drawn).keys()] : [...new Set([lane.last ?? mine, mine])];
  lane.last = mine;
  for (const c of columns) {
    // Of a thinned grid, the column that the step lies in shows that very step.
    const step = c === mine ? steps[state.step] : steps[Math.min(c * thin, steps.length - 1)];
    if (step < view.steps[0]) continue;
    const right = Math.min(wide, width - c * wide);
    const x = Math.round((LEFT + c * wide + Math.max(0, (right - w) / 2)) * scale), side = Math.round(w * scale), tall = Math.round(h * scale);
    rows.forEach((f, i) => paint(context, +lane.dataset.view, row(view, step), f, x, Math.round((top + i * height + 1) * scale), side, tall));
  }
  const here = lane.querySelector(".here"), i = rows.findLastIndex(f => f <= state.frame);
  const right = Math.min(wide, width - mine * wide);
  here.style.left = `${LEFT + mine * wide + Math.max(0, (right - w) / 2)}px`;
  here.style.top = `${top + Math.max(0, i) * height + 1}px`;
  here.style.width = `${w}px`;
  here.style.height = `${h}px`;
}
