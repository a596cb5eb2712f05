// The table of runs: those that are ticked are compared, the first one is the baseline.
const boxes = [...document.querySelectorAll(".runs input")];
let ticked = [];
function tick() {
  // Also what was ticked before the page was left: browsers restore it.
  const on = boxes.filter(box => box.checked).map(box => box.value);
  ticked = [...new Set([...ticked.filter(key => on.includes(key)), ...on])];
  $("compare").disabled = ticked.length < 2;
  const names = ticked.map(key => boxes.find(box => box.value === key).closest("tr").querySelector("b").textContent);
  $("ticked").textContent = names.length ? names.join(" and ") : "Tick two or more runs; the first that is ticked is the baseline.";
}
for (const box of boxes) box.addEventListener("change", tick);
addEventListener("pageshow", tick);
$("compare").addEventListener("click", () => { location.href = `run/${ticked.join("+")}/`; });
