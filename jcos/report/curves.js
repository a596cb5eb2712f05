// Curves under the plane, on its axis of steps.
const DASHES = ["", "7 4", "2 4", "9 3 2 3", "12 4", "1 3"];

function chartsNow() {
  // Lines by chart: of the runs that are shown, or of the whole experiment.
  const charts = new Map(), add = (line, who, i) => {
    if (!charts.has(line.chart)) charts.set(line.chart, []);
    charts.get(line.chart).push({ ...line, who, run: i });
  };
  state.shown.forEach((v, i) => views[v].lines.forEach(line => add(line, title(views[v]), i)));
  data.lines.forEach(line => add(line, null, 0));
  const found = [];
  for (const [name, lines] of charts) {
    const labels = [...new Set(lines.map(l => l.label))], runs = [...new Set(lines.map(l => l.run))];
    const style = (line, i, text) => Object.assign(line, { style: colour(i), dash: DASHES[i % DASHES.length], name: text });
    const equal = lines[0].who && lines.every(l => JSON.stringify(l.values) === JSON.stringify(lines[0].values));
    if (equal && labels.length === 1) {           // the noise level: the same in all runs
      found.push([name, [style(lines[0], 0, name)]]);
    } else if (labels.length > 1 && lines[0].who) {  // a chart for each run
      for (const r of runs) {
        const mine = lines.filter(l => l.run === r);
        found.push([runs.length > 1 ? `${mine[0].who}: ${name}` : name, mine.map(l => style(l, labels.indexOf(l.label), l.label))]);
      }
    } else found.push([name, lines.map(l => style(l, labels.length > 1 ? labels.indexOf(l.label) : l.run, l.who ?? l.label))]);
  }
  return found;
}

function span(lines) {
  const known = lines.flatMap(l => [...l.values, ...(l.low ?? []), ...(l.high ?? [])]).filter(v => v != null);
  if (!known.length) return [0, 1];
  const low = Math.min(0, ...known), high = Math.max(...known);
  return low >= 0 && high <= 1.0001 && high > .3 ? [0, 1] : [low, high > low ? high * 1.04 : low + 1];
}

function ticks(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const each = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough * .999);
  const found = [];
  for (let t = Math.ceil(low / each - 1e-9) * each; t <= high + each * 1e-6; t += each) found.push(+t.toPrecision(10));
  return found;
}

const TALL = 92;
function buildCurves() {
  $("curves").replaceChildren();
  for (const [name, lines] of chartsNow()) {
    const [low, high] = span(lines), y = v => 6 + (1 - (v - low) / (high - low)) * (TALL - 12);
    const svg = make("svg", { width: width + LEFT + GAP, height: TALL + 2, role: "img", "aria-label": `${name}, over the denoising steps: ${lines.map(l => `${l.name} from ${brief(l.values.find(v => v != null))} to ${brief(l.values.findLast(v => v != null))}`).join("; ")}` });
    for (const t of ticks(low, high, 2)) {
      svg.append(make("path", { class: t === 0 ? "floor" : "rule", d: `M${LEFT} ${y(t)}h${width}`, fill: "none" }));
      svg.append(make("text", { x: LEFT - 8, y: y(t) + 4, "text-anchor": "end" }, brief(t)));
    }
    const marks = new Set(state.shown.flatMap(v => marksOf(views[v]).steps));
    for (const s of marks) svg.append(make("rect", { class: "shade", x: place(s) - Math.max(1.5, band / 2), y: 0, width: Math.max(3, band), height: TALL }));
    for (const line of lines) {
      const spots = line.steps.map((s, i) => [place(s), line.values[i], line.low?.[i], line.high?.[i]]).filter(p => p[1] != null);
      const bounded = spots.filter(p => p[2] != null && p[3] != null);
      if (bounded.length) svg.append(make("polygon", { class: `band ${line.style}`, points: [...bounded.map(p => `${p[0].toFixed(1)},${y(p[3]).toFixed(1)}`), ...bounded.reverse().map(p => `${p[0].toFixed(1)},${y(p[2]).toFixed(1)}`)].join(" ") }));
      svg.append(make("path", { class: `line ${line.style}`, "stroke-dasharray": line.dash, d: spots.map((p, i) => `${i ? "L" : "M"}${p[0].toFixed(1)} ${y(p[1]).toFixed(1)}`).join("") }));
      line.spot = make("circle", { class: `spot ${line.style}`, r: 4 });
      svg.append(line.spot);
    }
    const keys = make("ul", {}, ...lines.map(line => {
      const key = make("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, make("path", { class: `line ${line.style}`, "stroke-dasharray": line.dash, d: "M1 4h20" }));
      line.value = make("b");
      return make("li", {}, ...(lines.length > 1 ? [key, line.name] : []), line.value);
    }));
    const lane = make("div", { class: "lane curve" }, make("h3", {}, make("span", {}, name), keys), svg);
    lane.lines = lines; lane.y = y;
    const follow = event => set({ step: stepAt(event.clientX - svg.getBoundingClientRect().left) });
    svg.addEventListener("pointermove", event => { if (!state.playing) follow(event); });
    svg.addEventListener("pointerdown", event => { stop(); follow(event); });
    $("curves").append(lane);
  }
  const last = make("svg", { width: width + LEFT + GAP, height: 34, "aria-hidden": "true" });
  for (const t of ticks(0, steps.length - 1, Math.max(2, Math.min(steps.length - 1, width / 70))).filter(t => Number.isInteger(t)))
    last.append(make("text", { x: LEFT + (t + .5) * band, y: 12, "text-anchor": "middle" }, String(steps[t])));
  last.append(make("text", { x: LEFT + width / 2, y: 30, "text-anchor": "middle" }, "denoising step"));
  $("curves").append(make("div", { class: "lane numbers" }, last));
}

function drawCurves() {
  const step = steps[state.step];
  for (const lane of document.querySelectorAll("#curves .curve"))
    for (const line of lane.lines) {
      const i = line.steps.findLastIndex(s => s <= step), v = i < 0 ? null : line.values[i];
      line.value.textContent = brief(v);
      line.spot.setAttribute("visibility", v == null ? "hidden" : "visible");
      if (v != null) { line.spot.setAttribute("cx", place(line.steps[i])); line.spot.setAttribute("cy", lane.y(v)); }
    }
}
