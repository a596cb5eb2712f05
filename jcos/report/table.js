// The table of runs: those that are ticked are compared, the first one is the baseline.
const ticked = [];
for (const box of document.querySelectorAll(".runs input"))
  box.addEventListener("change", () => {
    if (box.checked) ticked.push(box.value);
    else ticked.splice(ticked.indexOf(box.value), 1);
    $("compare").disabled = ticked.length < 2;
    const names = ticked.map(key => document.querySelector(`.runs input[value="${key}"]`).closest("tr").querySelector("b").textContent);
    $("ticked").textContent = names.length ? names.join(" and ") : "Tick two or more runs; the first that is ticked is the baseline.";
  });
$("compare").addEventListener("click", () => { location.href = `run/${ticked.join("+")}/`; });
