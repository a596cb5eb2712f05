// Maps: values along several axes. Two of them are shown as rows and columns; of the others a mean is taken, one place is
// chosen, or it is that of the sliders.
const RAMP = [[0, 34, 78], [42, 63, 109], [87, 93, 109], [124, 123, 120], [166, 157, 117], [212, 193, 94], [254, 232, 56]];   // cividis
const heatColour = t => {
  const at = clamp(t, 0, 1) * (RAMP.length - 1), i = Math.min(RAMP.length - 2, Math.floor(at));
  return `rgb(${RAMP[i].map((c, k) => Math.round(c + (at - i) * (RAMP[i + 1][k] - c))).join()})`;
};
const numbered = axis => typeof axis.labels[0] === "number";
const LINKED = ["step", "frame"];    // axes that the sliders move along
const every = axis => axis.labels.map((_, i) => i);

// ---- numbers ------------------------------------------------------------------------------------
function unpacked({ low, high, data }) {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const codes = new DataView(bytes.buffer), each = (high - low) / 65534;
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => { const c = codes.getUint16(2 * i, true); return c === 65535 ? NaN : low + c * each; });
}

function meanOf(values, shape, picks) {
  // Over all that the picks, indices of each axis, have in common; null where no number is known.
  let total = 0, count = 0;
  const walk = (axis, at) => {
    if (axis === shape.length) { if (!Number.isNaN(values[at])) { total += values[at]; count++; } return; }
    for (const i of picks[axis]) walk(axis + 1, at * shape[axis] + (shape[axis] === 1 ? 0 : i));
  };
  walk(0, 0);
  return count ? total / count : null;
}

function opened(map) {
  // Read when it is first shown; and how it is turned at first.
  if (map.read) return map;
  map.read = unpacked(map.values);
  map.shape = map.axes.map(a => a.labels.length);
  const named = name => map.axes.findIndex(a => a.name === name), found = map.axes.map((_, i) => i);
  const [step, layer, frame] = ["step", "layer", "frame"].map(named);
  const order = i => numbered(map.axes[i]) ? 1e6 - i : map.axes[i].name === "task" ? 0 : map.axes[i].labels.length;
  const best = found.sort((a, b) => order(b) - order(a));
  map.columns = step >= 0 && layer >= 0 && frame >= 0 ? frame : step >= 0 ? step : best[1];
  map.rows = step >= 0 && layer >= 0 && frame >= 0 ? layer : best.find(i => i !== map.columns);
  map.fixed = map.axes.map(a => !numbered(a) ? 0 : a.name === "step" ? "here" : "mean");
  return map;
}

function here(axis) {
  // Where the sliders are on it: the nearest place.
  const first = views[state.shown[0]];
  const wanted = axis.name === "step" ? steps[state.step] : first ? first.frames[column(first)] : state.frame;
  return axis.labels.reduce((best, l, i) => Math.abs(l - wanted) < Math.abs(axis.labels[best] - wanted) ? i : best, 0);
}

const picksOf = (map, r, c) => map.axes.map((axis, i) =>
  i === map.rows ? [r] : i === map.columns ? [c] : map.fixed[i] === "mean" ? every(axis) : map.fixed[i] === "here" ? [here(axis)] : [map.fixed[i]]);

const matrix = map => every(map.axes[map.rows]).map(r => every(map.axes[map.columns]).map(c => meanOf(map.read, map.shape, picksOf(map, r, c))));

function range(map) {
  // Of all that the sliders can make of it, so that a colour means the same at every step.
  const follows = map.axes.findIndex((_, i) => i !== map.rows && i !== map.columns && map.fixed[i] === "here");
  let low = Infinity, high = -Infinity;
  const look = row => row.forEach(v => { if (v != null) { low = Math.min(low, v); high = Math.max(high, v); } });
  if (follows < 0) matrix(map).forEach(look);
  else for (const i of every(map.axes[follows])) {
    map.fixed[follows] = i;
    matrix(map).forEach(look);
    map.fixed[follows] = "here";
  }
  if (low > high) return [0, 1];
  if (Math.abs(low) < 1e-5 * (high - low)) low = 0;   // of rounding
  return [low, high > low ? high : low + 1];
}

// ---- on the page --------------------------------------------------------------------------------
const several = name => `${name}s`;
const onAxis = map => map.axes[map.columns].name === "step";

function mapsNow() {
  const own = state.shown.flatMap(v => views[v].maps.map(map => ({ map, who: state.shown.length > 1 ? title(views[v]) : null })));
  return [...own, ...data.maps.filter((_, i) => state.maps.has(i)).map(map => ({ map, who: null }))];
}

function chooseMaps() {
  const many = data.maps.length > 3;
  state.maps = new Set(data.maps.keys());
  if (many) state.maps = new Set([0, 1]);
  $("maps").hidden = !many;
  $("maps").replaceChildren(...data.maps.map((map, i) => {
    const chip = make("button", { type: "button", "aria-pressed": String(state.maps.has(i)) }, map.title);
    chip.addEventListener("click", () => {
      if (!state.maps.delete(i)) state.maps.add(i);
      chip.setAttribute("aria-pressed", String(state.maps.has(i)));
      buildMaps();
    });
    return chip;
  }));
}

function buildMaps() {
  $("heats").replaceChildren(); $("matrices").replaceChildren();
  for (const { map, who } of mapsNow()) {
    const lane = laneOf(opened(map), who);
    (onAxis(map) ? $("heats") : $("matrices")).append(lane);
    drawMap(lane, true);
  }
}

function chooser(map, label, options, value, change) {
  const select = make("select", { "aria-label": label }, ...options.map(([v, text]) => make("option", { value: v }, text)));
  select.value = value;
  select.addEventListener("change", () => { change(select.value); buildMaps(); });
  return make("span", {}, `${label} `, select);
}

function choosers(map) {
  // Which axes are rows and columns, and what of the others.
  const found = map.axes.map((a, i) => [String(i), a.name]), turn = map.axes.length > 2;
  const swap = (side, other) => value => { if (map[other] === +value) map[other] = map[side]; map[side] = +value; };
  const parts = turn ? [chooser(map, "rows", found, map.rows, swap("rows", "columns")), chooser(map, "columns", found, map.columns, swap("columns", "rows"))] : [];
  map.axes.forEach((axis, i) => {
    if (i === map.rows || i === map.columns) return;
    const options = axis.labels.map((l, k) => [String(k), String(l)]);
    if (numbered(axis)) options.unshift(["mean", `mean of ${axis.labels.length}`]);
    if (LINKED.includes(axis.name)) options.unshift(["here", "as above"]);
    parts.push(chooser(map, axis.name, options, map.fixed[i], value => { map.fixed[i] = /^\d+$/.test(value) ? +value : value; }));
  });
  return parts;
}

function laneOf(map, who) {
  const rows = map.axes[map.rows], columns = map.axes[map.columns];
  const [low, high] = range(map), canvas = make("canvas", { role: "img", tabindex: 0 });
  const longest = Math.max(...rows.labels.map(l => String(l).length));
  const left = onAxis(map) ? LEFT : clamp(8 * longest, LEFT, 150);
  const ramp = make("span", { class: "ramp", title: "from the lowest to the highest" });
  ramp.style.background = `linear-gradient(90deg, ${[0, .2, .4, .6, .8, 1].map(heatColour).join()})`;
  const value = make("b"), key = make("ul", {}, make("li", {}, brief(low), ramp, brief(high)), make("li", {}, value));
  const head = make("h3", {}, make("span", {}, `${who ? `${who}: ` : ""}${map.title}, ${rows.name} × ${columns.name}`), key);
  const turns = choosers(map), lane = make("div", { class: `lane heat${onAxis(map) ? "" : " matrix"}` }, head);
  if (turns.length) lane.append(make("p", { class: "turns" }, ...turns));
  lane.append(make("div", { class: "cells" }, make("div", { class: "rows", "aria-hidden": "true" }), canvas, make("div", { class: "foot", "aria-hidden": "true" })));
  lane.style.setProperty("--left", `${left}px`);
  canvas.setAttribute("aria-label", `${map.title}: ${several(rows.name)} by ${several(columns.name)}, from ${brief(low)} to ${brief(high)}. Arrow keys choose a cell, Enter shows the runs behind it.`);
  Object.assign(lane, { map, low, high, left, value, canvas, mine: 0, at: null });
  listen(lane);
  return lane;
}

function layMap(lane) {
  const { map, left } = lane, rows = map.axes[map.rows].labels, columns = map.axes[map.columns].labels;
  const tall = clamp(Math.round(170 / rows.length), 4, 20), wide = onAxis(map) ? band : clamp(Math.floor((width + LEFT - left) / columns.length), 4, 46);
  lane.tall = tall; lane.wide = wide;
  lane.across = onAxis(map) ? width : wide * columns.length;
  const { canvas } = lane;
  canvas.width = Math.round((lane.across + left) * devicePixelRatio); canvas.height = rows.length * tall * devicePixelRatio;
  canvas.style.width = `${lane.across + left}px`; canvas.style.height = `${rows.length * tall}px`;
  const names = (holder, labels, size, side, least, offset) => {
    const skip = Math.max(1, Math.ceil(least / size));
    holder.replaceChildren(...labels.flatMap((name, i) => {
      if (i % skip) return [];
      const span = make("span", { title: String(name) }, String(name));
      span.style[side] = `${offset + (i + .5) * size}px`;
      return [span];
    }));
  };
  names(lane.querySelector(".rows"), rows, tall, "top", 11, 0);
  const foot = lane.querySelector(".foot");
  foot.hidden = onAxis(map);
  if (!onAxis(map)) {
    names(foot, columns, wide, "left", 9 + 7 * Math.max(...columns.map(l => String(l).length)), left);
    foot.append(make("span", { class: "name" }, map.axes[map.columns].name));
    foot.lastChild.style.left = `${left + lane.across + 8}px`;
  }
}

function drawMap(lane, whole) {
  const { map, low, high, left, canvas } = lane;
  if (whole) layMap(lane);
  lane.values = matrix(map);
  const labels = map.axes[map.columns].labels, context = canvas.getContext("2d"), scale = devicePixelRatio;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  const drawn = onAxis(map) ? [...steps.keys()] : labels.map((_, i) => i);
  for (const k of drawn) {
    const c = onAxis(map) ? nearest(labels, steps[k]) : k;
    lane.values.forEach((row, r) => {
      if (row[c] == null) return;
      context.fillStyle = heatColour((row[c] - low) / (high - low));
      const x = Math.round(left + k * lane.wide);
      context.fillRect(x, r * lane.tall, Math.round(left + (k + 1) * lane.wide) - x, lane.tall);
    });
  }
  const axis = map.axes[map.columns];
  if (axis.name === "frame") {         // where the slider is
    context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--s1");
    context.lineWidth = 2;
    context.strokeRect(left + here(axis) * lane.wide + 1, 1, lane.wide - 2, lane.values.length * lane.tall - 2);
  } else if (lane.at != null) {        // the cell that was chosen
    context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--s1");
    context.lineWidth = 2;
    context.strokeRect(left + lane.at * lane.wide + 1, lane.mine * lane.tall + 1, lane.wide - 2, lane.tall - 2);
  }
}

const nearest = (labels, wanted) => labels.reduce((best, l, i) => Math.abs(l - wanted) < Math.abs(labels[best] - wanted) ? i : best, 0);

function followMaps() {
  // The sliders moved.
  for (const lane of document.querySelectorAll(".lane.heat")) {
    const { map } = lane, follows = map.fixed.some((f, i) => f === "here" && i !== map.rows && i !== map.columns);
    if (follows || map.axes[map.columns].name === "frame") drawMap(lane, false);
  }
}

// ---- looking ------------------------------------------------------------------------------------
function told(map, r, c) {
  const at = i => { const axis = map.axes[i]; return numbered(axis) ? `${axis.name} ${axis.labels[i === map.rows ? r : c]}` : String(axis.labels[i === map.rows ? r : c]); };
  return `${at(map.rows)}, ${at(map.columns)}`;
}

function listen(lane) {
  const { map, canvas } = lane, rows = map.axes[map.rows], columns = map.axes[map.columns];
  const cell = event => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left;
    const r = clamp(Math.floor((event.clientY - box.top) / lane.tall), 0, rows.labels.length - 1);
    const c = onAxis(map) ? nearest(columns.labels, steps[stepAt(x)]) : clamp(Math.floor((x - lane.left) / lane.wide), 0, columns.labels.length - 1);
    return [r, c, x];
  };
  const say = (r, c) => { lane.value.textContent = `${told(map, r, c)}: ${brief(lane.values[r][c])}`; };
  const go = (r, c, x) => {
    const view = views[state.shown[0]], change = {};
    const spot = { [rows.name]: rows.labels[r], [columns.name]: columns.labels[c] };
    if (onAxis(map) && x != null) change.step = stepAt(x);
    else if ("step" in spot) change.step = nearest(steps, spot.step);
    if ("frame" in spot) change.frame = view ? view.frames.findLastIndex(f => f <= spot.frame) : spot.frame;
    set(change);
  };
  const choose = (r, c) => {           // columns of steps and frames follow the sliders
    lane.mine = r;
    if (LINKED.includes(columns.name)) return;
    lane.at = c;
    drawMap(lane, false);
  };
  canvas.addEventListener("pointermove", event => {
    const [r, c, x] = cell(event);
    say(r, c);
    if (!state.playing && onAxis(map)) set({ step: stepAt(x) });
  });
  canvas.addEventListener("pointerdown", event => {
    stop();
    const [r, c, x] = cell(event);
    choose(r, c);
    go(r, c, x);
    say(r, c);
    behind(lane, r, c);
  });
  canvas.addEventListener("keydown", event => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    const [down, across] = move, linked = LINKED.includes(columns.name);
    event.preventDefault();
    event.stopPropagation();
    if (linked && across) { stop(); set({ [columns.name]: state[columns.name] + across }); }
    choose(clamp(lane.mine + down, 0, rows.labels.length - 1), clamp((lane.at ?? 0) + across, 0, columns.labels.length - 1));
    const c = linked ? here(columns) : lane.at;
    say(lane.mine, c);
    if (event.key === "Enter") behind(lane, lane.mine, c);
  });
}

function runsBehind(map, r, c) {
  // The value of each run, and what it is the mean or the part of, where runs were not kept for all axes.
  const skip = map.tasks.length ? 1 : 0, picks = picksOf(map, r, c), shape = map.runs.shape;
  map.each ??= unpacked(map.runs);
  const task = skip && !picks[0].includes(0) ? map.axes[0].labels[picks[0][0]] : null;
  const count = map.names.length, found = [];
  for (let k = 0; k < count; k++) {
    if (task != null && map.tasks[k] !== task) continue;
    const v = meanOf(map.each, [...shape, count], [...picks.slice(skip), [k]]);
    if (v != null) found.push([v, map.names[k]]);
  }
  const notes = map.axes.slice(skip).flatMap((axis, i) => {
    const fixed = map.fixed[i + skip], asIs = shape[i] > 1 || axis.labels.length === 1 || fixed === (numbered(axis) ? "mean" : 0);
    return asIs ? [] : [numbered(axis) ? `their mean over ${several(axis.name)}` : String(axis.labels[0])];
  });
  return [found, notes];
}

function behind(lane, r, c) {
  // The single runs of a cell, each a dot.
  lane.querySelector(".behind")?.remove();
  const { map } = lane;
  if (!map.runs) return;
  const [values, notes] = runsBehind(map, r, c);
  if (!values.length) return;
  const all = values.map(p => p[0]), share = all.every(v => v >= 0 && v <= 1);
  const low = share ? 0 : Math.min(...all), high = share ? 1 : Math.max(low + 1e-9, ...all);
  const svg = make("svg", { viewBox: "0 0 540 38", role: "img", "aria-label": `${values.length} runs from ${brief(Math.min(...all))} to ${brief(Math.max(...all))}` });
  svg.append(make("path", { class: "rule", d: "M10 24h520" }));
  const stacked = new Map();
  for (const [v, name] of values) {
    const x = Math.round(10 + (v - low) / (high - low) * 520), n = stacked.get(x) ?? 0;
    stacked.set(x, n + 1);
    svg.append(make("circle", { cx: x, cy: 24 - Math.min(n, 6) * 3.2, r: 3.5 }, make("title", {}, `${name}: ${brief(v)}`)));
  }
  svg.append(make("text", { x: 10, y: 37 }, brief(low)), make("text", { x: 530, y: 37, "text-anchor": "end" }, brief(high)));
  const sorted = [...values].sort((a, b) => a[0] - b[0]), list = some => some.map(p => `${p[1]} (${brief(p[0])})`).join("; ");
  const note = notes.length ? ` (${notes.join(", ")})` : "";
  const text = `${told(map, r, c)}: ${values.length} runs${note}. Lowest: ${list(sorted.slice(0, 3))}. Highest: ${list(sorted.slice(-3).reverse())}.`;
  lane.append(make("div", { class: "behind" }, text, svg));
}
