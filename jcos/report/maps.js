// Maps: values along several axes. Two of them are shown as rows and columns; of the others a mean is taken, or one place
// is chosen.
const RAMP = [[0, 34, 78], [42, 63, 109], [87, 93, 109], [124, 123, 120], [166, 157, 117], [212, 193, 94], [254, 232, 56]];   // cividis
const heatColour = t => {
  const at = clamp(t, 0, 1) * (RAMP.length - 1), i = Math.min(RAMP.length - 2, Math.floor(at));
  return `rgb(${RAMP[i].map((c, k) => Math.round(c + (at - i) * (RAMP[i + 1][k] - c))).join()})`;
};
const numbered = axis => typeof axis.labels[0] === "number";
const every = axis => axis.labels.map((_, i) => i);
const MEAN = -1;

// ---- numbers ------------------------------------------------------------------------------------
const unpacked = data => new Float32Array(Uint8Array.from(atob(data), c => c.charCodeAt(0)).buffer);

function meanOf(values, shape, picks) {
  // Over all that the picks, indices of each axis, have in common; null where no number is known.
  let total = 0, count = 0;
  const walk = (axis, at) => {
    if (axis === shape.length) { if (!Number.isNaN(values[at])) { total += values[at]; count++; } return; }
    for (const i of picks[axis]) walk(axis + 1, at * shape[axis] + i);
  };
  walk(0, 0);
  return count ? total / count : null;
}

function turned(map) {
  // How it lies at first: steps as columns, the layers or the longest other axis as rows.
  map.read = unpacked(map.values);
  map.shape = map.axes.map(a => a.labels.length);
  const rank = a => ({ step: 5, layer: 4, frame: 3, task: -2 })[a.name] ?? (numbered(a) ? 2 : 1);
  const order = map.axes.map((_, i) => i).sort((a, b) => rank(map.axes[b]) - rank(map.axes[a]));
  [map.columns, map.rows] = order;
  map.fixed = map.axes.map(a => numbered(a) ? MEAN : 0);
}

const picksOf = (map, r, c) => map.axes.map((axis, i) => i === map.rows ? [r] : i === map.columns ? [c] : map.fixed[i] === MEAN ? every(axis) : [map.fixed[i]]);
const matrix = map => every(map.axes[map.rows]).map(r => every(map.axes[map.columns]).map(c => meanOf(map.read, map.shape, picksOf(map, r, c))));

function limits(map) {
  // Of all places of the axis that is moved along, so that a colour means the same at each.
  const moved = map.axes.findIndex((a, i) => i !== map.rows && i !== map.columns && map.fixed[i] !== MEAN && numbered(a)), keep = map.fixed[moved];
  const all = [];
  for (const i of moved < 0 ? [0] : every(map.axes[moved])) {
    if (moved >= 0) map.fixed[moved] = i;
    all.push(...matrix(map).flat().filter(v => v != null));
  }
  if (moved >= 0) map.fixed[moved] = keep;
  let low = Infinity, high = -Infinity;
  for (const v of all) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) return [0, 1];
  if (Math.abs(low) < 1e-5 * (high - low)) low = 0;   // of rounding
  return [low, high > low ? high : low + 1];
}

// ---- on the page --------------------------------------------------------------------------------
function cellsOf({ rows, values, x, wide, tall, width, colour, label, ...names }) {
  // A matrix as coloured cells, its rows named at the left; x: where each column begins.
  const canvas = make("canvas", { role: "img", "aria-label": label }), context = sized(canvas, width, rows.length * tall);
  values.forEach((row, r) => row.forEach((v, c) => {
    if (v == null) return;
    context.fillStyle = colour(v);
    context.fillRect(x(c), r * tall, wide, tall);
  }));
  const holder = make("div", { class: "rows", "aria-hidden": "true" });
  nameCells(holder, rows, tall, names);
  return make("div", { class: "cells" }, holder, canvas);
}

function drawMap(box, map) {
  turned(map);
  const turns = make("p", { class: "turns" }), value = make("b"), ends = [make("span"), make("span")];
  const ramp = make("span", { class: "ramp", title: "from the lowest to the highest" });
  ramp.style.background = `linear-gradient(90deg, ${[0, .2, .4, .6, .8, 1].map(heatColour).join()})`;
  const lane = make("div", { class: "heat" }, turns, make("p", { class: "key" }, ends[0], ramp, ends[1], value));
  box.replaceChildren(lane);
  let scale, chosen;
  const paint = rescaled => {
    if (rescaled) scale = limits(map);
    ends.forEach((end, i) => { end.textContent = brief(scale[i]); });
    value.textContent = "";
    const [cells, choose] = mapCells(lane, map, scale, value, chosen);
    for (const old of lane.querySelectorAll(".cells, .behind")) old.remove();
    lane.append(cells);
    if (chosen.cell) choose(...chosen.cell, chosen.open);
  };
  const build = () => { chosen = {}; turns.replaceChildren(...choosers(map, build, paint)); paint(true); };
  build();
}

function choosers(map, build, paint) {
  // Which axes are rows and columns, and what of the others: words in a menu, numbers on a slider whose left end is the mean.
  const names = map.axes.map((a, i) => [i, a.name]), parts = [];
  const menu = (label, options, value, change) => {
    const select = make("select", { "aria-label": label }, ...options.map(([v, text]) => make("option", { value: v }, text)));
    select.value = value;
    select.addEventListener("change", () => change(+select.value));
    parts.push(make("span", {}, `${label} `, select));
  };
  if (names.length > 2) for (const [side, other] of [["rows", "columns"], ["columns", "rows"]])
    menu(side, names, map[side], value => { if (map[other] === value) map[other] = map[side]; map[side] = value; build(); });
  map.axes.forEach((axis, i) => {
    if (i === map.rows || i === map.columns) return;
    if (!numbered(axis)) return menu(axis.name, axis.labels.map((l, k) => [k, l]), map.fixed[i], value => { map.fixed[i] = value; build(); });
    const slider = make("input", { type: "range", min: MEAN, max: axis.labels.length - 1, "aria-label": axis.name }), now = make("output");
    const say = () => { now.textContent = map.fixed[i] === MEAN ? `mean of ${axis.labels.length}` : axis.labels[map.fixed[i]]; };
    slider.value = map.fixed[i];
    say();
    slider.addEventListener("input", () => {
      const before = map.fixed[i];
      map.fixed[i] = +slider.value;
      say();
      paint((before === MEAN) !== (map.fixed[i] === MEAN));   // colours mean the same at all places
    });
    parts.push(make("span", {}, `${axis.name} `, slider, now));
  });
  return parts;
}

function mapCells(lane, map, [low, high], value, chosen) {
  // The cells that are shown, and what chooses one; hovering says a value, a click or Enter shows the runs behind it.
  const axes = [map.axes[map.rows], map.axes[map.columns]], [rows, columns] = axes.map(a => a.labels), values = matrix(map);
  const longest = Math.max(...rows.map(l => String(l).length)), left = clamp(7 * longest + 14, 34, 150);
  const wide = clamp(Math.floor((lane.clientWidth - left - 8) / columns.length), 2, 46), tall = clamp(Math.round(220 / rows.length), 3, 26);
  const label = `${map.title}: ${axes[0].name}s by ${axes[1].name}s, from ${brief(low)} to ${brief(high)}. Arrow keys choose a cell, Enter shows the runs behind it.`;
  const cells = cellsOf({ rows, values, x: c => left + c * wide, wide, tall, width: wide * columns.length + left, colour: v => heatColour((v - low) / (high - low)), label });
  const canvas = cells.querySelector("canvas"), here = make("div", { class: "here" }), foot = make("div", { class: "foot", "aria-hidden": "true" });
  lane.style.setProperty("--left", `${left}px`);
  nameCells(foot, columns, wide, { side: "left", least: 9 + 7 * Math.max(...columns.map(l => String(l).length)), from: left });
  foot.append(make("p", {}, `${axes[0].name} × ${axes[1].name}`));
  cells.append(foot);
  const named = (r, c) => [[axes[0], r], [axes[1], c]].map(([a, k]) => numbered(a) ? `${a.name} ${a.labels[k]}` : a.labels[k]).join(", ");
  const say = (r, c) => { value.textContent = `${named(r, c)}: ${brief(values[r][c])}`; };
  const choose = (r, c, open) => {
    Object.assign(chosen, { cell: [r, c], open });
    Object.assign(here.style, { left: `${left + c * wide}px`, top: `${r * tall}px`, width: `${wide}px`, height: `${tall}px` });
    canvas.after(here);
    say(r, c);
    if (open) behind(lane, map, named(r, c), r, c);
  };
  const at = event => {
    const box = canvas.getBoundingClientRect();
    return [clamp(Math.floor((event.clientY - box.top) / tall), 0, rows.length - 1), clamp(Math.floor((event.clientX - box.left - left) / wide), 0, columns.length - 1)];
  };
  canvas.tabIndex = 0;
  canvas.addEventListener("pointermove", event => say(...at(event)));
  canvas.addEventListener("pointerdown", event => choose(...at(event), true));
  canvas.addEventListener("keydown", event => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const [row, column] = chosen.cell ?? [0, 0];
    choose(clamp(row + move[0], 0, rows.length - 1), clamp(column + move[1], 0, columns.length - 1), event.key === "Enter");
  });
  return [cells, choose];
}

function runsBehind(map, r, c) {
  // The value of each run, of the chosen task if one is.
  const skip = map.tasks.length ? 1 : 0, picks = picksOf(map, r, c), shape = [...map.shape.slice(skip), map.names.length];
  map.each ??= unpacked(map.runs);
  const task = skip && !picks[0].includes(0) ? map.axes[0].labels[picks[0][0]] : null;
  return map.names.flatMap((name, k) => {
    if (task != null && map.tasks[k] !== task) return [];
    const v = meanOf(map.each, shape, [...picks.slice(skip), [k]]);
    return v == null ? [] : [[v, name]];
  });
}

function behind(lane, map, name, row, column) {
  // The single runs of a cell, each a dot.
  lane.querySelector(".behind")?.remove();
  if (!map.runs) return;
  const values = runsBehind(map, row, column);
  if (!values.length) return;
  const all = values.map(p => p[0]), share = all.every(v => v >= 0 && v <= 1);
  const low = share ? 0 : Math.min(...all), high = share ? 1 : Math.max(low + 1e-9, ...all), stacked = new Map();
  const svg = make("svg", { viewBox: "0 0 540 38", role: "img", "aria-label": `${values.length} runs from ${brief(Math.min(...all))} to ${brief(Math.max(...all))}` }, make("path", { class: "rule", d: "M10 24h520" }));
  for (const [v, name] of values) {
    const x = Math.round(10 + (v - low) / (high - low) * 520), n = stacked.get(x) ?? 0;
    stacked.set(x, n + 1);
    svg.append(make("circle", { cx: x, cy: 24 - Math.min(n, 6) * 3.2, r: 3.5 }, make("title", {}, `${name}: ${brief(v)}`)));
  }
  svg.append(make("text", { x: 10, y: 37 }, brief(low)), make("text", { x: 530, y: 37, "text-anchor": "end" }, brief(high)));
  const sorted = [...values].sort((a, b) => a[0] - b[0]), list = some => some.map(p => `${p[1]} (${brief(p[0])})`).join("; ");
  const text = `${name}: ${values.length} runs. Lowest: ${list(sorted.slice(0, 3))}. Highest: ${list(sorted.slice(-3).reverse())}.`;
  lane.append(make("div", { class: "behind" }, text, svg));
}
