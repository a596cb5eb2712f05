// The step × frame plane: its state, its pictures, panes and grids.
if (!$("plane")) return;

// ---- data and state -----------------------------------------------------------------------------
// Of each run a page knows the name and the steps; all else once it is looked at (`loaded`).
const views = data.views;
const steps = [...new Set(views.flatMap(v => v.steps))].sort((a, b) => a - b);
const groups = [...new Set(views.map(v => v.group))];
const MOST = 6;
const state = { step: 0, frame: 0, shown: [], group: groups[0], difference: "none", back: false, wide: false, playing: null, moved: false };
const pictures = new Map();          // view → loaded image
const frames = () => Math.max(1, ...state.shown.map(v => views[v].frames));
const row = (view, step = steps[state.step]) => Math.max(0, view.steps.findLastIndex(s => s <= step));
const column = view => Math.min(state.frame, view.frames - 1);
const VIDEO = -1, RIGHT = -2;

async function loaded(number) {
  const view = views[number];
  view.reading ??= read(`view-${number}`).then(content => Object.assign(view, { frames: 1, lines: [], changes: [], answers: [], pictures: [], cell: [1, 1], columns: 1 }, content));
  await view.reading;
  if (view.error) say(`${view.label} is not shown: ${view.error}`);
  return view;
}

function sheetOf(number) {
  // Decoded when it is first looked at.
  if (!pictures.has(number)) {
    const picture = new Image();
    picture.onload = () => { if (state.shown.includes(number) || state.difference === "first") draw(); };
    picture.onerror = () => { if (!views[number].error) say(`The pictures of ${views[number].label} are missing.`); };
    if (views[number].sheet) picture.src = views[number].sheet;
    pictures.set(number, picture);
  }
  const picture = pictures.get(number);
  return picture.complete && picture.naturalWidth ? picture : null;
}

// The run that another is compared with: that of the first folder, or else the first that is shown, of the same puzzle.
const baseline = number => views[number].baseline ?? state.shown[0];

function paint(context, number, at, frame, x, y, w, h) {
  // One cell: a step's estimate (at = its row), the video or the right answer; as a difference if asked for.
  const view = views[number], picture = sheetOf(number);
  if (!picture) return;
  const [cw, ch] = view.cell;
  const line = at === VIDEO ? view.steps.length : at === RIGHT ? view.steps.length + 1 : at;
  const put = (c, image, of, r, x, y) => {
    const i = r * of.frames + Math.min(frame, of.frames - 1), [wide, high] = of.cell;
    c.drawImage(image, i % of.columns * wide, Math.floor(i / of.columns) * high, wide, high, x, y, w, h);
  };
  context.imageSmoothingEnabled = w < cw;
  context.imageSmoothingQuality = "high";
  const end = state.difference === "end", first = state.difference === "first" ? baseline(number) : null;
  if (at < 0 || (!end && first == null)) return put(context, picture, view, line, x, y);
  const other = end ? picture : sheetOf(first);
  if (!other) return;
  const against = end ? view.steps.length - 1 : row(views[first], view.steps[at]);
  const buffer = paint.buffer ??= document.createElement("canvas");
  buffer.width = w; buffer.height = h;
  const c = buffer.getContext("2d");
  c.imageSmoothingEnabled = context.imageSmoothingEnabled;
  put(c, picture, view, line, 0, 0);
  c.globalCompositeOperation = "difference";
  put(c, other, end ? view : views[first], against, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(x, y, w, h);
  context.globalAlpha = .22;
  put(context, picture, view, line, x, y);
  context.globalAlpha = 1;
  context.globalCompositeOperation = "lighter";
  context.drawImage(buffer, x, y);
  context.globalCompositeOperation = "source-over";
}

// ---- the axis: step ↔ place ---------------------------------------------------------------------
const LEFT = 46, GAP = 10;           // names of rows stand to the left
let width = 0, band = 0;             // of the plot, of one step
const place = step => {              // the middle of a step; between shown steps in proportion
  let i = steps.findIndex(s => s >= step);
  if (i < 0) i = steps.length - 1;
  const part = i > 0 && steps[i] > step ? (steps[i] - step) / (steps[i] - steps[i - 1]) : 0;
  return LEFT + (i - part + .5) * band;
};
const stepAt = x => clamp(Math.floor((x - LEFT) / band), 0, steps.length - 1);

// ---- panes --------------------------------------------------------------------------------------
const canvasOf = (view, about) => {
  const canvas = make("canvas", { role: "img", class: view.cell[0] <= 64 ? "exact" : "" });
  [canvas.width, canvas.height] = view.cell;
  return make("div", { class: about }, canvas, make("p"));
};

const verdict = view => view.solved == null ? [] : [make("span", { class: `mark ${view.solved ? "solved" : "unsolved"}` }, view.solved ? "✓ solved" : "✗ not solved")];

function marksOf(view) {
  // Steps and frames at which something was changed, where it was not at all of them.
  const among = (changes, side, size) => [...new Set(changes.flatMap(c => { const at = new Set(c.cells.map(p => p[side])); return at.size < c[size] ? [...at] : []; }))];
  return view.marks ??= { steps: among(view.changes, 0, "steps"), frames: among(view.changes.filter(c => c.axis === "frame"), 1, "size") };
}

function buildPanes() {
  const stage = $("stage");
  stage.replaceChildren(...state.shown.map((number, i) => {
    const view = views[number];
    const name = make("figcaption", {}, make("i", { class: `swatch ${hue(i)}` }), make("b", {}, view.label));
    name.append(...verdict(view));
    const changed = view.changes.map(c => c.text).join("; ");
    if (changed) name.append(make("span", { class: "changed" }, changed));
    const aside = make("div", { class: "beside" });
    if (view.video) aside.append(canvasOf(view, "end"));
    if (view.reference) aside.append(canvasOf(view, "right"));
    const inside = make("div", { class: "pictures" }, canvasOf(view, "now"));
    if (aside.children.length) inside.append(aside);
    inside.style.setProperty("--shares", aside.children.length ? `minmax(0, ${view.reference ? 2.1 : 1.25}fr) minmax(0, 1fr)` : "minmax(0, 1fr)");
    return make("figure", { class: "pane", "data-view": number }, name, inside);
  }));
  stage.style.setProperty("--panes", state.shown.length > 3 && state.shown.length !== 5 ? Math.ceil(state.shown.length / (state.shown.length > 4 ? 2 : 1)) : state.shown.length);
  stage.dataset.panes = state.shown.length;
  const prompts = [...new Set(state.shown.map(v => views[v].prompt).filter(Boolean))];
  $("prompt").textContent = prompts.length === 1 ? `“${prompts[0]}”` : "";
}

function drawPanes() {
  for (const pane of $("stage").children) {
    const number = +pane.dataset.view, view = views[number], at = row(view), frame = column(view);
    const here = `frame ${frame}`;
    const parts = { now: [at, `x̂₀ · step ${view.steps[at]} · ${here}`, "Clean estimate"], end: [VIDEO, `final · ${here}`, "Final video"], right: [RIGHT, `a right answer · ${here}`, "A right answer"] };
    for (const [name, [line, text, alt]] of Object.entries(parts)) {
      const box = pane.querySelector(`.${name}`);
      if (!box) continue;
      const canvas = box.firstChild;
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      paint(context, number, line, frame, 0, 0, canvas.width, canvas.height);
      canvas.setAttribute("aria-label", `${alt} of ${view.label}, ${name === "now" ? `step ${view.steps[at]}, ` : ""}${here}`);
      box.lastChild.textContent = text;
    }
  }
}

// ---- grids: frames × steps ----------------------------------------------------------------------
function buildGrids() {
  $("grids").replaceChildren(...state.shown.map((number, i) => {
    const view = views[number];
    const h3 = make("h3", {}, make("span", {}, `${state.shown.length > 1 ? `${view.label}: ` : ""}x̂₀, frames × steps`), make("span", { class: "thinned" }));
    const canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": `All clean estimates of ${view.label}: ${view.frames} frames by ${view.steps.length} steps. Arrow keys move through them.` });
    const cells = make("div", { class: "cells" }, make("div", { class: "rows", "aria-hidden": "true" }), canvas, make("div", { class: "here" }), make("div", { class: "foot", "aria-hidden": "true" }));
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

const nth = n => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] ?? "th"}`;

function layGrid(lane) {
  // Where its cells lie: every fifth step or so at first, large enough to be looked at.
  const view = views[+lane.dataset.view], [cw, ch] = view.cell, count = steps.length;
  const room = Math.max(48, Math.min(112, 620 / view.frames * cw / ch)), least = Math.ceil(Math.min(room, 64) / band);
  const rough = state.wide || count <= 12 ? 1 : Math.max(5, Math.ceil(least / 5) * 5);
  const thin = Math.ceil(count / Math.max(1, Math.floor(count / rough))), wide = band * thin;   // the last column is as wide, or nearly
  let w = Math.max(4, Math.min(wide - 2, room));
  if (cw <= 64 && w * devicePixelRatio >= cw) w = Math.floor(w * devicePixelRatio / cw) * cw / devicePixelRatio;
  const h = w * ch / cw, most = state.wide ? 99 : Math.max(2, Math.floor(640 / (h + 2)));
  const every = Math.ceil(view.frames / most);
  const rows = [...Array(view.frames).keys()].filter(f => f % every === 0 || (f === view.frames - 1 && every > 1));
  const marked = marksOf(view).steps.length ? 9 : 0;
  lane.layout = { thin, wide, w, h, rows, top: marked, height: h + 2 };
  const thinned = [every > 1 ? `every ${nth(every)} frame` : "", thin > 1 ? `every ${nth(thin)} step` : ""].filter(Boolean);
  lane.querySelector(".thinned").textContent = thinned.length ? ` (${thinned.join(", ")}; the sliders reach all)` : "";
  sized(lane.querySelector("canvas"), width + LEFT, rows.length * (h + 2) + marked).resetTransform();   // its pixels are those of the screen
  nameCells(lane.querySelector(".rows"), rows, h + 2, { least: 0, from: marked, hit: marksOf(view).frames });
}

function drawGrid(lane, whole) {
  const view = views[+lane.dataset.view], { thin, wide, w, h, rows, top, height } = lane.layout;
  const canvas = lane.querySelector("canvas"), context = canvas.getContext("2d"), scale = devicePixelRatio;
  if (whole) {
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = getComputedStyle(canvas).getPropertyValue("--bad");
    for (const step of marksOf(view).steps) {   // what was changed
      const x = place(step) * scale, half = Math.max(3, Math.min(6, band / 2)) * scale;
      context.beginPath();
      context.moveTo(x - half, 0); context.lineTo(x + half, 0); context.lineTo(x, 7 * scale);
      context.fill();
    }
  }
  const mine = Math.floor(state.step / thin);
  const names = [...Array(Math.ceil(steps.length / thin)).keys()].map(c => steps[c === mine ? state.step : c * thin]);
  nameCells(lane.querySelector(".foot"), names, wide, { side: "left", least: 24, from: LEFT });
  const columns = whole ? [...names.keys()] : [...new Set([lane.last ?? mine, mine])];
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

// ---- what was changed: steps × frames, or steps × layers ----------------------------------------
function changesNow() {
  // Of the runs that are shown: those with the same changes together, and what lies on the same axes.
  const alike = new Map();
  for (const number of state.shown) for (const axis of ["frame", "layer"]) {
    const mine = views[number].changes.filter(c => c.axis === axis);
    const key = JSON.stringify([axis, mine.map(c => [c.cells, c.text])]);
    if (mine.length) alike.set(key, [...alike.get(key) ?? [], number]);
  }
  return [...alike].map(([key, runs]) => [views[runs[0]].changes.filter(c => c.axis === JSON.parse(key)[0]), runs]);
}

function buildChanges() {
  const red = getComputedStyle($("changes")).getPropertyValue("--bad");
  $("changes").replaceChildren(...changesNow().map(([parts, runs]) => {
    const { axis } = parts[0], [size, count] = ["size", "steps"].map(k => Math.max(...parts.map(c => c[k]))), text = parts.map(c => c.text).join("; ");
    const who = runs.length < state.shown.length ? `${runs.map(v => views[v].label).join("; ")}: ` : "";
    const tall = Math.max(8 / size, clamp(Math.round(64 / size), 2, 14)), wide = Math.max(2, width / Math.max(count, steps.length));
    const rows = [...Array(size).keys()], values = rows.map(() => Array(count).fill(null));
    for (const [step, at] of parts.flatMap(c => c.cells)) values[at][step] = 1;
    return cellLane(`${who}what was changed, ${axis}s × steps`, make("span", { class: "changed" }, text), "changes", {
      rows, values, x: step => place(step) - wide / 2, wide: wide + .3, tall, colour: () => red,
      label: `${who}what was changed: ${text}`, least: Math.max(12, (size - 1) * tall),
    });
  }));
}
