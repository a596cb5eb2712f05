// Moving through the plane: sliders, playing, keys, the choice of runs.
// ---- moving -------------------------------------------------------------------------------------
function build() {
  const box = $("axis").clientWidth;
  width = box - LEFT - GAP;
  if (state.wide) width = Math.max(width, steps.length * 72);
  band = width / steps.length;
  $("lanes").style.width = `${width + LEFT + GAP}px`;
  $("lanes").style.setProperty("--left", `${LEFT}px`);
  buildPanes(); buildGrids(); buildChanges(); buildLanes();
  for (const lane of $("grids").children) layGrid(lane);
  draw();
}

function draw() {
  if (!state.shown.length) return;
  drawPanes();
  for (const lane of $("grids").children) drawGrid(lane, true);
  move();
  if (!draw.marked && state.shown.every(sheetOf)) { draw.marked = true; performance.mark("shown"); }
}

function move() {
  const step = steps[state.step], first = views[state.shown[0]];
  $("step").value = state.step; $("frame").value = state.frame;
  if (!first) return;
  const sigma = first.lines.find(l => l.label === "σ"), at = sigma ? sigma.steps.indexOf(step) : -1;
  const tell = (what, now, last, more = "") => {
    $(`${what}-now`).replaceChildren(make("b", {}, String(now)), make("span", {}, ` of ${last}${more}`));
    $(what).setAttribute("aria-valuetext", `${what} ${now} of ${last}`);
  };
  tell("step", step, steps.at(-1), at >= 0 ? ` · σ ${sigma.values[at].toFixed(3)}` : "");
  tell("frame", Math.min(state.frame, first.frames - 1), first.frames - 1);
  $("cursor").style.left = `${place(step)}px`;
  moveLanes();
  const anchored = !state.moved && location.hash && !location.hash.includes("=");
  const hash = anchored ? location.hash : `#step=${step}&frame=${state.frame}&runs=${state.shown.join()}`;
  clearTimeout(move.later);
  move.later = setTimeout(() => history.replaceState(null, "", hash), 300);
}

function set(change) {
  const step = clamp(change.step ?? state.step, 0, steps.length - 1), frame = clamp(change.frame ?? state.frame, 0, frames() - 1);
  if (step === state.step && frame === state.frame) return;
  Object.assign(state, { step, frame, moved: true });
  drawPanes();
  for (const lane of $("grids").children) drawGrid(lane, false);
  move();
  if (state.wide) {
    const axis = $("axis"), x = place(steps[step]);
    if (x < axis.scrollLeft + LEFT || x > axis.scrollLeft + axis.clientWidth - 40) axis.scrollLeft = x - axis.clientWidth / 2;
  }
}

const say = text => { $("said").textContent = text; };

// ---- playing: through time at one step, or through the steps at one frame ------------------------
let timer = 0;
function stop() {
  clearTimeout(timer);
  state.playing = null;
  for (const b of document.querySelectorAll(".play")) b.setAttribute("aria-pressed", "false");
}
function play(what) {
  const again = state.playing === what;
  stop();
  if (again) return;
  state.playing = what;
  $(`play-${what}`).setAttribute("aria-pressed", "true");
  const size = () => what === "step" ? steps.length : frames();
  const way = () => state.back ? -1 : 1;
  const end = () => state.back ? 0 : size() - 1;
  if (state[what] === end()) set({ [what]: state.back ? size() - 1 : 0 });
  const tick = () => {
    if (state[what] === end()) set({ [what]: state.back ? size() - 1 : 0 });
    else set({ [what]: state[what] + way() });
    const rest = what === "step" ? Math.max(80, 4000 / size()) : Math.max(90, Math.min(350, 5000 / size()));
    timer = setTimeout(tick, state[what] === end() ? rest + 900 : rest);
  };
  timer = setTimeout(tick, 120);
}

// ---- controls -----------------------------------------------------------------------------------
const press = (button, on) => button.setAttribute("aria-pressed", String(on));

async function show(shown) {
  if (!shown.length) return;
  const wanted = shown.slice(0, MOST), turn = show.turn = (show.turn ?? 0) + 1;
  await Promise.all([...wanted, ...wanted.map(v => views[v].baseline ?? wanted[0])].map(loaded));
  if (turn !== show.turn) return;      // another choice was made meanwhile
  state.shown = wanted.filter(v => !views[v].error);
  if (!state.shown.length) return;
  if (shown.length > MOST) say(`At most ${MOST} runs are shown side by side.`);
  $("frame").max = frames() - 1;
  state.frame = Math.min(state.frame, frames() - 1);
  for (const chip of $("runs").children) press(chip, state.shown.includes(+chip.dataset.view));
  const comparable = state.shown.some(v => ![null, v].includes(baseline(v)));
  document.querySelector("[data-difference=first]").hidden = !comparable;
  if (!comparable && state.difference === "first") differ("none");
  build();
}

function differ(kind) {
  state.difference = kind;
  for (const button of document.querySelectorAll("[data-difference]")) press(button, button.dataset.difference === kind);
}

const inGroup = group => views.map((_, i) => i).filter(i => views[i].group === group);

function enter(group, shown) {
  state.group = group;
  const members = inGroup(group);
  $("group").value = group;
  $("runs").replaceChildren(...members.map(number => {
    const chip = make("button", { type: "button", "data-view": number, "aria-pressed": "false", title: views[number].prompt.slice(0, 300) }, views[number].label);
    chip.addEventListener("click", () => { state.moved = true; show(state.shown.includes(number) ? state.shown.filter(v => v !== number) : [...state.shown, number].sort((a, b) => a - b)); });
    return chip;
  }));
  $("runs").hidden = members.length < 2;
  return show(shown ?? members.slice(0, 2));
}

function controls() {
  $("step").max = steps.length - 1;
  for (const what of ["step", "frame"]) {
    $(what).addEventListener("input", () => { stop(); set({ [what]: +$(what).value }); });
    $(`play-${what}`).addEventListener("click", () => play(what));
  }
  const back = () => { state.back = !state.back; press($("back"), state.back); $("plane").classList.toggle("backwards", state.back); };
  $("back").addEventListener("click", back);
  for (const button of document.querySelectorAll("[data-difference]"))
    button.addEventListener("click", () => { differ(button.dataset.difference); draw(); });
  const wide = () => { state.wide = !state.wide; press($("wide"), state.wide); build(); };
  $("wide").addEventListener("click", wide);
  $("group").addEventListener("change", () => { state.moved = true; enter($("group").value); });
  const keys = {
    ArrowLeft: () => set({ step: state.step - 1 }), ArrowRight: () => set({ step: state.step + 1 }),
    ",": () => set({ frame: state.frame - 1 }), ".": () => set({ frame: state.frame + 1 }),
    Home: () => set({ step: 0 }), End: () => set({ step: steps.length - 1 }),
    p: () => play("step"), f: () => play("frame"), b: back, g: wide,
    d: () => { differ(state.difference === "none" ? "end" : "none"); draw(); },
  };
  const grid = { ArrowUp: () => set({ frame: state.frame - 1 }), ArrowDown: () => set({ frame: state.frame + 1 }) };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=range]), select, video, .scroller")) return;
    if (event.target.type === "range" && /^(Arrow|Home|End)/.test(event.key)) return;   // it does so itself
    const digit = /^[1-9]$/.test(event.key) ? $("runs").children[+event.key - 1] : null;
    const act = keys[event.key] ?? (event.target.matches(".grid canvas") ? grid[event.key] : null) ?? (digit ? () => digit.click() : null);
    if (!act || !state.shown.length) return;
    event.preventDefault();
    if (event.key.startsWith("Arrow") || event.key === "," || event.key === ".") stop();
    act();
  });
  let last = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== last && state.shown.length) { last = innerWidth; build(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (state.shown.length) build(); });
}

async function open() {
  const prompt = g => views.find(v => v.group === g).prompt, differ = new Set(groups.map(prompt)).size > 1;
  const names = groups.map(g => [g, differ && prompt(g) ? `${g} – ${prompt(g).slice(0, 60)}` : g]);
  $("group").replaceChildren(...names.map(([value, text]) => make("option", { value }, text)));
  $("group").parentNode.hidden = groups.length < 2;
  $("pick").hidden = views.length < 2;
  const params = new URLSearchParams(location.hash.slice(1));
  const wanted = (params.get("runs") ?? "").split(",").filter(Boolean).map(Number).filter(i => views[i]);
  const best = views[data.open], alike = views.map((_, i) => i).filter(i => views[i].baseline === best.baseline && best.baseline != null);
  const shown = wanted.length ? wanted : alike.length ? alike : [data.open];
  const { group } = views[shown[0]];
  state.frame = +(params.get("frame") ?? 1e6);
  const at = params.get("step"), start = at == null ? -1 : steps.indexOf(+at);
  state.step = start >= 0 ? start : Math.min(steps.length - 1, Math.floor(steps.length * .1));
  await enter(group, shown.filter(i => views[i].group === group));
}

controls();
open();
addEventListener("hashchange", () => {    // a link to runs
  if (!location.hash.includes("runs=")) return;
  open();
  $("plane").scrollIntoView({ behavior: "smooth" });
});
