// The page's behaviour: what is chosen, what is ticked, the tables (by DataTables), reloading.

function choices(id, labels, chosen) {
  if (!$(id)) return;
  $(id).replaceChildren(...labels.map(([value, text]) => new Option(text, value)));
  $(id).value = String(chosen);
}

function fillControls() {
  const keys = D.keys.map((key, k) => [k, key.key]);
  choices("metric", D.metrics.map((metric, m) => [m, metric.title]), 0);
  choices("line-x", keys, D.x);
  choices("line-by", [[-1, "(none)"], ...keys], D.lines);
  choices("heat-x", keys, D.x);
  choices("heat-y", keys, D.lines < 0 ? 0 : D.lines);
  choices("status", [["", "all"], ...[...new Set(D.runs.map((r) => r.status))].sort().map((s) => [s, s])], "");
  if (!D.groups.some((g) => g.counted.length > 1)) $("curve-mode").value = "runs";
  fillConfusions();
}

function fillConfusions() {
  const runs = (n) => (n === 1 ? "one run" : `${n} runs`);
  const its = D.data[dataSet()]?.confusions || [];
  choices("confusion-of", its.map((c, i) => [i, `${c.label} (${runs(c.runs)})`]), 0);
}

function showTicks() {
  const tables = ["configuration-table", "run-table"].map((id) => boxesOf(id)).flat();
  for (const box of tables) {
    const its = box.dataset.run !== undefined ? [Number(box.dataset.run)] : D.groups[box.dataset.group].runs;
    const on = its.filter((r) => ticked.has(r)).length;
    box.checked = on > 0;
    box.indeterminate = on > 0 && on < its.length;
  }
}

function tick(which) {
  ticked.clear();
  const groups = which === "all" ? groupsHere() : which === "best" ? ranked().slice(0, BEST) : [];
  // while nothing has finished, what runs is worth a look
  const shown = which === "best" && !groups.length ? groupsHere().slice(0, BEST) : groups;
  for (const group of shown) for (const r of group.runs) ticked.add(r);
  showTicks();
  drawCurves();
}

const boxes = {}; // the table's library takes rows of other pages out of the document
function boxesOf(id) {
  boxes[id] ??= [...$(id).querySelectorAll("input[type=checkbox]")];
  return boxes[id];
}

function drawAll() {
  document.documentElement.classList.toggle("dark", isDark()); // what DataTables goes by
  drawCurves(); drawLines(); drawHeat(); drawCosts(); drawSeeds(); drawConfusion();
}

function listen() {
  const on = (ids, handler) => ids.forEach((id) => $(id)?.addEventListener("input", handler));
  on(["metric", "curve-mode", "smoothing"], drawCurves);
  on(["line-x", "line-by"], drawLines);
  on(["heat-x", "heat-y"], drawHeat);
  on(["confusion-of"], drawConfusion);
  on(["accuracy"], drawAll);
  on(["data-set"], () => { fillConfusions(); tick("best"); drawAll(); });
  document.querySelectorAll("[data-tick]").forEach((b) => b.addEventListener("click", () => tick(b.dataset.tick)));
  document.addEventListener("change", (event) => {
    const { run, group } = event.target.dataset;
    if (run === undefined && group === undefined) return;
    for (const r of run !== undefined ? [Number(run)] : D.groups[group].runs) {
      if (event.target.checked) ticked.add(r); else ticked.delete(r);
    }
    showTicks();
    drawCurves();
  });
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch { // no clipboard without https: select it for the person's own copy
      getSelection().selectAllChildren(code);
    }
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let wasNarrow = isNarrow();
  addEventListener("resize", () => { if (wasNarrow !== isNarrow()) { wasNarrow = isNarrow(); drawAll(); } });
}

async function makeTables() {
  boxesOf("configuration-table"); boxesOf("run-table");
  const source = new Blob([$("datatables").textContent], { type: "text/javascript" });
  const { default: DataTable } = await import(URL.createObjectURL(source));
  const options = (size) => ({ pageLength: size, lengthMenu: [10, 25, 100, { label: "all", value: -1 }],
    autoWidth: false, order: [], columnDefs: [{ targets: 0, orderable: false, searchable: false }],
    layout: { topStart: "search", topEnd: null, bottomStart: "info", bottomEnd: ["pageLength", "paging"] },
    language: { search: "filter", info: "_START_ to _END_ of _TOTAL_", lengthMenu: "_MENU_ a page" } });
  new DataTable("#configuration-table", options(10));
  const runs = new DataTable("#run-table", options(25));
  const column = [...$("run-table").tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === "status");
  $("status").addEventListener("input", () => runs.column(column).search($("status").value, { exact: true }).draw());
  document.body.dataset.tables = "ready";
}

function reloadWhileWatched() {
  if (!D.watch) return;
  setInterval(() => { if ($("reload").checked) location.reload(); }, 1000 * D.watch);
}

fillControls();
listen();
makeTables();
tick("best");
drawAll();
reloadWhileWatched();
document.body.dataset.charts = "ready";
