// Under the grids, on their axis of steps: what was measured of the runs that are shown.
const TALL = 104, MASS = "mass on each right answer";
const SHARES = [MASS, "mass on no right answer", "score of x̂0"];   // from 0 to 1

function chartsNow() {
  // Their lines by chart; of several answers a chart for each run, of one measure a line for each.
  const charts = new Map();
  state.shown.forEach((v, run) => views[v].lines.forEach(line => {
    if (!charts.has(line.chart)) charts.set(line.chart, []);
    charts.get(line.chart).push({ ...line, mean: line.values, who: views[v].label, view: views[v], run });
  }));
  const lanes = [];
  for (const [name, lines] of charts) {
    const labels = [...new Set(lines.map(l => l.label))], runs = [...new Set(lines.map(l => l.run))];
    const style = (line, hue, text) => styled(Object.assign(line, { hue, name: text, at: i => place(line.steps[i]) }));
    const equal = lines.every(l => JSON.stringify(l.values) === JSON.stringify(lines[0].values));
    if (equal && labels.length === 1) lanes.push([name, [style(lines[0], 0, name)]]);
    else if (labels.length > 1) for (const run of runs) {
      const mine = lines.filter(l => l.run === run);
      lanes.push([runs.length > 1 ? `${mine[0].who}: ${name}` : name, mine.map(l => style(l, labels.indexOf(l.label), l.label))]);
    } else lanes.push([name, lines.map(l => style(l, l.run, l.who))]);
  }
  return lanes;
}

function buildLanes() {
  const shaded = new Set(state.shown.flatMap(v => marksOf(views[v]).steps));
  $("curves").replaceChildren(...chartsNow().map(([name, lines]) => {
    const label = `${name}, over the denoising steps: ${lines.map(l => `${l.name} ${fromTo(l)}`).join("; ")}`;
    const drawn = plot({ lines, range: [0, 1], whole: SHARES.includes(lines[0].chart), width: width + LEFT + GAP, height: TALL, left: LEFT, right: GAP, label });
    for (const s of shaded) drawn.svg.prepend(make("rect", { class: "shade", x: place(s) - Math.max(1.5, band / 2), y: 0, width: Math.max(3, band), height: TALL }));
    const keys = make("ul", {}, ...lines.map(line => {
      line.value = make("b");
      const answer = line.view.answers.indexOf(line.name), picture = line.chart === MASS && line.view.pictures[answer];
      const sign = picture ? [make("img", { class: `answer ${line.style}`, src: picture, alt: `Last frame of ${line.name}` })] : lines.length > 1 ? [key(line)] : [];
      return make("li", {}, ...sign, ...(lines.length > 1 ? [line.name] : []), line.value);
    }));
    const lane = make("div", { class: "lane curve" }, make("h3", {}, make("span", {}, name), keys), drawn.svg);
    Object.assign(lane, { lines, drawn });
    const go = event => set({ step: stepAt(event.clientX - drawn.svg.getBoundingClientRect().left) });
    drawn.svg.addEventListener("pointermove", event => { if (!state.playing) go(event); });
    drawn.svg.addEventListener("pointerdown", event => { stop(); go(event); });
    return lane;
  }));
  const last = make("svg", { width: width + LEFT + GAP, height: 34, "aria-hidden": "true" });
  for (const t of ticks(0, steps.length - 1, Math.max(2, Math.min(steps.length - 1, width / 70))).filter(t => Number.isInteger(t)))
    last.append(make("text", { x: LEFT + (t + .5) * band, y: 12, "text-anchor": "middle" }, String(steps[t])));
  last.append(make("text", { x: LEFT + width / 2, y: 30, "text-anchor": "middle" }, "denoising step"));
  $("curves").append(make("div", { class: "lane numbers" }, last));
}

function moveLanes() {
  const step = steps[state.step];
  for (const lane of document.querySelectorAll("#curves .curve"))
    for (const line of lane.lines) {
      const i = line.steps.findLastIndex(s => s <= step);
      lane.drawn.move(line, i);
    }
}

function cellLane(title, extra, kind, how) {
  // Cells of a run on the axis of steps.
  const cells = cellsOf({ width: width + LEFT, ...how });
  return make("div", { class: `lane ${kind}` }, make("h3", {}, make("span", {}, title), extra), cells);
}
