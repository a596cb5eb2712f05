// The one chart: lines with bands, baselines, ticks. Under the plane it lies on its axis of steps;
// charts of an experiment have a panel for each task.
const DASHES = ["", "7 4", "2 4", "9 3 2 3", "12 4", "1 3"];
const hue = i => `s${i % 6}`;

function ticks(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const each = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough * .999), marks = [];
  for (let t = Math.ceil(low / each - 1e-9) * each; t <= high + each * 1e-6; t += each) marks.push(+t.toPrecision(10));
  return marks;
}

function span(lines, levels, range, whole) {
  const known = [...lines.flatMap(l => [...l.mean, ...(l.low ?? []), ...(l.high ?? [])]), ...levels.map(l => l.value)].filter(v => v != null);
  if (!known.length) return range ?? [0, 1];
  const low = Math.min(...known), high = Math.max(...known), room = .04 * (high - low) || .5;
  if (range && (whole || high - low > .3 * (range[1] - range[0]))) return range;
  if (low >= 0 && low < .4 * high) return [0, high + room];
  return [Math.max(low - room, range?.[0] ?? -Infinity), Math.min(high + room, range?.[1] ?? Infinity)];
}

// What is known, in pieces: a hole is where a line begins anew.
const pieces = (spots, known) => spots.reduce((all, p) => { if (known(p)) all.at(-1).push(p); else all.push([]); return all; }, [[]]).filter(piece => piece.length);

function plot({ at, lines, levels = [], range, whole, width, height, left, right = 10, bottom = 4, label, x = [] }) {
  // at: where each place of the axis lies. x: its ticks, as [where, text]. Returns what moves along it.
  const [low, high] = span(lines, levels, range, whole), top = 6, floor = height - bottom;
  const y = v => top + (1 - (v - low) / (high - low || 1)) * (floor - top);
  const svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const few = ticks(low, high, height > 120 ? 4 : 2);
  for (const t of few.length > 1 ? few : ticks(low, high, 5)) {
    svg.append(make("path", { class: t === 0 ? "floor" : "rule", d: `M${left} ${y(t)}H${width - right}`, fill: "none" }));
    svg.append(make("text", { x: left - 8, y: y(t) + 4, "text-anchor": "end" }, brief(t)));
  }
  for (const [where, text] of x) svg.append(make("text", { x: where, y: floor + 15, "text-anchor": "middle" }, text));
  for (const level of levels) {
    const h = y(level.value);
    svg.append(make("path", { class: "level", d: `M${left} ${h}H${width - right}` }, make("title", {}, `${level.label}: ${brief(level.value)}`)));
    if (bottom > 10) svg.append(make("text", { class: "name", x: width - right, y: h < top + 14 ? h + 12 : h - 4, "text-anchor": "end" }, level.label));
  }
  for (const line of lines) {
    const spots = (line.places ?? line.mean.map((_, i) => i)).map(i => [(line.at ?? at)(i), line.mean[i], line.low?.[i], line.high?.[i]]);
    const point = (p, k) => `${p[0].toFixed(1)},${y(p[k]).toFixed(1)}`, drawn = pieces(spots, p => p[1] != null);
    for (const piece of pieces(spots, p => p[2] != null && p[3] != null)) {
      const edges = piece.length > 1 ? piece : [-2, 2].map(d => [piece[0][0] + d, ...piece[0].slice(1)]);
      svg.append(make("polygon", { class: `band ${line.style}`, points: [...edges.map(p => point(p, 3)), ...edges.toReversed().map(p => point(p, 2))].join(" ") }));
    }
    svg.append(make("path", { class: `line ${line.style}`, "stroke-dasharray": line.dash, d: drawn.map(piece => piece.map((p, i) => `${i ? "L" : "M"}${point(p, 1).replace(",", " ")}`).join("")).join("") }));
    for (const [[x, v]] of drawn.filter(piece => piece.length === 1)) svg.append(make("circle", { class: `spot lone ${line.style}`, r: 3, cx: x, cy: y(v) }));
    line.spot = make("circle", { class: `spot ${line.style}`, r: 4, visibility: "hidden" });
    svg.append(line.spot);
  }
  const move = (line, i) => {          // to a place of the axis
    const v = i < 0 ? null : line.mean[i];
    if (line.value) line.value.textContent = brief(v);
    line.spot.setAttribute("visibility", v == null ? "hidden" : "visible");
    if (v != null) { line.spot.setAttribute("cx", (line.at ?? at)(i)); line.spot.setAttribute("cy", y(v)); }
  };
  return { svg, move };
}

const styled = line => Object.assign(line, line.ideal ? { style: "off", dash: "5 4" } : { style: hue(line.hue), dash: DASHES[Math.floor(line.hue / 6) % DASHES.length] });
const key = line => make("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, make("path", { class: `line ${line.style}`, "stroke-dasharray": line.dash, d: "M1 4h20" }));

// ---- charts of an experiment --------------------------------------------------------------------
function drawCurves(box, chart) {
  if (!chart.panels.length) return box.closest("figure").remove();   // of no run a number is known
  const open = chart.panels.filter(p => !p.flat), folded = chart.panels.filter(p => p.flat);
  const lines = [...new Map(chart.panels.flatMap(p => p.lines).map(l => [l.label, styled(l)])).values()];
  const legend = make("ul", { class: "legend" }, ...lines.filter(() => lines.length > 1).map(l => make("li", {}, key(l), l.label)));
  const sizes = [...new Set(chart.panels.map(p => p.n))].sort((a, b) => a - b), n = sizes.length > 1 ? `${sizes[0]} to ${sizes.at(-1)}` : sizes[0];
  const wide = Math.min(640, box.clientWidth || 640), all = panels => make("div", { class: "panels" }, ...panels.map(p => panel(chart, p, panels.length > 1 ? Math.min(330, wide) : wide)));
  box.replaceChildren(legend, all(open));
  if (folded.length) {
    const names = folded.map(p => p.task || "all runs").join(", "), values = folded.map(p => p.lines[0].mean.find(v => v != null));
    const level = Math.max(...values) - Math.min(...values) < .01 ? ` (${brief(values[0])} throughout)` : "";
    box.append(make("details", { class: "folded" }, make("summary", {}, `Nothing changes: ${names}${level}`), all(folded)));
  }
  box.append(make("p", { class: "note" }, `${chart.statistic === "median" ? "Median" : "Mean"} and 95 % interval over ${n} runs.`));
}

function panel(chart, { task, lines, levels }, width) {
  const height = width > 400 ? 270 : 210, left = 46, right = 12, bottom = 34;
  const numbers = chart.labels.every(l => typeof l === "number"), spots = numbers ? chart.labels : chart.labels.map((_, i) => i);
  const low = Math.min(...spots), high = Math.max(...spots), at = i => left + (spots[i] - low) / (high - low || 1) * (width - left - right);
  const whole = spots.every(Number.isInteger), shown = numbers ? ticks(low, high || 1, 5).filter(t => t <= high && (!whole || Number.isInteger(t))).map(t => [left + (t - low) / (high - low || 1) * (width - left - right), brief(t)]) : chart.labels.map((l, i) => [at(i), l]);
  lines.forEach(styled);
  const says = lines.map(l => `${l.label || chart.title} ${fromTo(l)}`);
  const drawn = plot({ at, lines, levels, range: chart.range, width, height, left, right, bottom, x: shown, label: `${task ? `${task}: ` : ""}${chart.title}, along ${chart.x}s: ${says.join("; ")}` });
  drawn.svg.append(make("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, chart.x === "step" ? "denoising step" : chart.x));
  if (chart.units) drawn.svg.append(make("text", { x: 2, y: 10 }, chart.units));
  const readout = make("span", { class: "readout" });
  drawn.svg.addEventListener("pointermove", event => {
    const box = drawn.svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
    const i = spots.map((_, i) => i).reduce((a, b) => Math.abs(at(b) - x) < Math.abs(at(a) - x) ? b : a, 0);
    lines.forEach(line => drawn.move(line, i));
    readout.textContent = `${chart.x} ${chart.labels[i]}: ${lines.map(l => `${lines.length > 1 ? `${l.label} ` : ""}${brief(l.mean[i])}`).join(" · ")}`;
  });
  drawn.svg.addEventListener("pointerleave", () => { lines.forEach(line => drawn.move(line, -1)); readout.textContent = ""; });
  return make("div", { class: "panel" }, make("p", { class: "name" }, make("b", {}, task), readout), drawn.svg);
}

for (const figure of document.querySelectorAll("[data-chart]"))
  whenVisible(figure, async () => {
    const box = figure.querySelector(".drawing"), chart = await read(`chart-${figure.dataset.chart}`);
    if (chart.error) box.append(make("p", { class: "note" }, `Not shown: ${chart.error}`));
    else if (chart.kind === "map") drawMap(box, chart);
    else drawCurves(box, chart);
  });
