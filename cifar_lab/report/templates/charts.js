"use strict";
// The page's charts, by Plotly. D is what page.py wrote; page.js has the controls and the tables.
const D = JSON.parse(document.getElementById("data").textContent);
const MAX_LINES = 60, BEST = 7, MAX_LEVELS = 12, BINS = 10;
const $ = (id) => document.getElementById(id);
const ticked = new Set(); // numbers of the runs whose curves are drawn

// --- what all charts share ---------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const isNarrow = () => innerWidth < 820;
// Plotly reads a little HTML in its texts: names of runs are none
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cut = (text, most) => plain(text.length > most ? text.slice(0, most - 1) + "…" : text);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const dataSet = () => Number($("data-set").value) || 0;
const accuracy = () => (D.data[dataSet()]?.accuracy === "test/acc" ? "test" : $("accuracy").value);
const accuracyTitle = () => (accuracy() === "val" ? "validation accuracy (%)" : "test accuracy (%)");
const groupsHere = () => D.groups.filter((g) => g.data === dataSet());
const ranked = () => groupsHere().filter((g) => g.place !== null).sort((a, b) => a.place - b.place);
const accuraciesOf = (group) =>
  group.counted.map((r) => D.runs[r]).filter((run) => run[accuracy()] !== null);

function colorOf(index) {
  const color = D.palette[index % D.palette.length];
  const onDark = { "#000000": "#ffffff", "#0072B2": "#56B4E9", "#56B4E9": "#F0E442" };
  return isDark() ? onDark[color] || color : color;
}
const dashOf = (index) => D.dashes[Math.floor(index / D.palette.length) % D.dashes.length];
const faint = (hex, alpha) =>
  `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

function axis(title, more) {
  return { title: { text: plain(title), standoff: 12 }, gridcolor: css("--line"), zerolinecolor: css("--line"),
    linecolor: css("--line"), automargin: true, ...more };
}

function draw(id, traces, xaxis, yaxis, more) {
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--text"), size: 12.5, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 56, r: 14, t: 10, b: 48 }, hovermode: "closest", xaxis, yaxis,
    hoverlabel: { namelength: -1 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } }, ...more,
  };
  const config = { displaylogo: false, responsive: true, displayModeBar: isNarrow() ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: id } };
  return Plotly.react($(id), traces, layout, config);
}

function nothing(id, text) {
  return draw(id, [], { visible: false }, { visible: false },
    { annotations: [{ text, showarrow: false, font: { color: css("--muted"), size: 14 } }] });
}

function logAxis(values) {
  // Plotly's own labels leave the powers of ten off
  const low = Math.floor(Math.log10(Math.min(...values))), high = Math.ceil(Math.log10(Math.max(...values)));
  const steps = high - low > 4 ? [1] : high - low > 2 ? [1, 3] : [1, 2, 5], tickvals = [];
  for (let power = low; power <= high; power++) for (const step of steps) tickvals.push(step * 10 ** power);
  const text = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 });
  return { type: "log", tickvals, ticktext: tickvals.map((v) => text.format(v)) };
}

function keyAxis(key, groups, k) {
  if (!key.numeric) return axis(key.key, { type: "category", categoryorder: "array", categoryarray: key.levels });
  const few = key.levels.length <= MAX_LEVELS;
  const ticks = few ? { tickvals: groups.map((g) => g.values[k]), ticktext: groups.map((g) => g.levels[k]) } : {};
  if (!key.log) return axis(key.key, ticks);
  return axis(key.key, few ? { type: "log", ...ticks } : logAxis(groups.map((g) => g.values[k])));
}
const along = (group, k) => (D.keys[k].numeric ? group.values[k] : group.levels[k]);

function heat(id, x, y, z, options) {
  const flat = z.flat().filter((v) => v !== null);
  const few = x.length * y.length <= 400 && !(isNarrow() && x.length > 6);
  const text = z.map((row) => row.map((v) => (v === null ? "" : v.toFixed(options.decimals))));
  const trace = { type: "heatmap", x, y, z, text, colorscale: "Cividis", xgap: 1, ygap: 1,
    texttemplate: few ? "%{text}" : "", hovertemplate: options.hover + "<extra></extra>",
    customdata: options.customdata, zmin: options.low ?? Math.min(...flat),
    zmax: options.high ?? Math.max(...flat), hoverongaps: false,
    colorbar: { title: { text: options.title, side: "right" }, thickness: 14, outlinewidth: 0 } };
  const ticks = { type: "category", showgrid: false };
  return draw(id, [trace], axis(options.xTitle, ticks), axis(options.yTitle, { ...ticks, ...options.yAxis }));
}

// --- learning curves ---------------------------------------------------------------------------

function smooth(values) {
  // an exponential moving average, divided by the weight that it has had so far
  const weight = Number($("smoothing").value);
  let sum = 0, seen = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + (1 - weight) * value;
    seen = seen * weight + (1 - weight);
    return sum / seen;
  });
}

function meanCurve(runs, metric) {
  const byEpoch = new Map();
  for (const run of runs) {
    run.epochs.forEach((epoch, i) => {
      const value = run.curves[metric][i];
      if (value !== null) byEpoch.set(epoch, [...(byEpoch.get(epoch) || []), value]);
    });
  }
  const epochs = [...byEpoch.keys()].sort((a, b) => a - b);
  const means = epochs.map((epoch) => mean(byEpoch.get(epoch)));
  const counts = epochs.map((epoch) => byEpoch.get(epoch).length);
  const sds = epochs.map((epoch, i) => {
    const values = byEpoch.get(epoch);
    return Math.sqrt(values.reduce((s, v) => s + (v - means[i]) ** 2, 0) / Math.max(1, values.length - 1));
  });
  return { epochs, means, sds, counts };
}

function meanTraces(group, runs, metric, scale) {
  const { epochs, means, sds, counts } = meanCurve(runs, metric);
  const middle = smooth(means.map((v) => v * scale)), index = group.place ?? BEST;
  const color = colorOf(index), legendgroup = group.label;
  const edge = (sign) => ({ x: epochs, y: middle.map((v, i) => v + sign * sds[i] * scale), mode: "lines",
    line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup });
  const band = runs.length > 1 ? [edge(1), { ...edge(-1), fill: "tonexty", fillcolor: faint(color, 0.12) }] : [];
  return [...band, { x: epochs, y: middle, mode: epochs.length > 1 ? "lines" : "markers", legendgroup,
    name: `${cut(group.label, isNarrow() ? 34 : 60)} (${runs.length})`,
    line: { color, width: 2.2, dash: dashOf(index) }, text: counts.map(String), // of those that got that far
    hovertemplate: `epoch %{x}: %{y:.4~g}<br>${plain(group.label)}, mean of %{text}<extra></extra>` }];
}

function runTraces(run, group, metric, scale, first) {
  const index = group.place ?? BEST, color = colorOf(index), legendgroup = group.label;
  const raw = run.curves[metric].map((v) => (v === null ? null : v * scale));
  const shared = { x: run.epochs, mode: raw.length > 1 ? "lines" : "markers", legendgroup, showlegend: false,
    connectgaps: true };
  const behind = Number($("smoothing").value) > 0
    ? [{ ...shared, y: raw, line: { color: faint(color, 0.25), width: 1 }, hoverinfo: "skip" }] : [];
  const ended = run.status === "finished" ? "" : ` (${run.status})`;
  return [...behind, { ...shared, y: smooth(raw), showlegend: first,
    name: cut(group.label, isNarrow() ? 34 : 60),
    line: { color, width: 1.6, dash: run.status === "finished" ? dashOf(index) : "dot" },
    hovertemplate: `epoch %{x}: %{y:.4~g}<br>${plain(run.name)}${ended}<extra></extra>` }];
}

function drawCurves() {
  $("smoothing-value").textContent = Number($("smoothing").value).toFixed(2);
  const metric = $("metric").value, each = $("curve-mode").value === "runs";
  if (!D.metrics.length) return nothing("curve-chart", "no curves yet");
  const { title, scale } = D.metrics[metric];
  const drawable = (r) => D.runs[r].curves[metric] !== undefined;
  const chosen = D.groups.filter((g) => g.runs.some((r) => ticked.has(r) && drawable(r)));
  chosen.sort((a, b) => (a.place ?? 1e9) - (b.place ?? 1e9));
  const traces = [];
  let lines = 0, wanted = 0;
  for (const group of chosen) {
    const drawn = group.runs.filter((r) => ticked.has(r) && drawable(r));
    // as in the tables: a run that failed, or repeats a seed, has no part in a mean
    const counted = each ? [] : drawn.filter((r) => group.counted.includes(r));
    const runs = (counted.length ? counted : drawn).map((r) => D.runs[r]);
    wanted += each ? runs.length : 1;
    const room = each ? runs.slice(0, Math.max(0, MAX_LINES - lines)) : lines < MAX_LINES ? runs : [];
    if (each) room.forEach((run, i) => traces.push(...runTraces(run, group, metric, scale, i === 0)));
    else if (room.length) traces.push(...meanTraces(group, room, metric, scale));
    lines += each ? room.length : room.length ? 1 : 0;
  }
  const things = each ? "runs" : "configurations", all = each ? D.runs.length : D.groups.length;
  $("curve-count").textContent = `${lines} of ${all} ${things} drawn` +
    (wanted > lines ? ` (${wanted} are ticked; at most ${MAX_LINES} lines at once, the best first)` : "") +
    (each ? "" : ", means of the finished runs, one a seed, where there are any") +
    ". Tick others in the tables; a click in the legend hides one, a double click all others.";
  if (!lines) return nothing("curve-chart", "tick a configuration or a run in the tables");
  const few = chosen.length <= (isNarrow() ? 8 : 16);
  if (isNarrow()) $("curve-chart").style.height = `${360 + (few ? 20 * chosen.length : 0)}px`;
  const last = Math.max(...traces.map((trace) => trace.x[trace.x.length - 1] || 0));
  const ticks = last <= 20 ? { dtick: last <= 10 || !isNarrow() ? 1 : 2 } : { tickformat: "d" };
  return draw("curve-chart", traces, axis("epoch", ticks), axis(title), { showlegend: few });
}

// --- what was varied ---------------------------------------------------------------------------

function overOthers(shown) {
  const names = D.keys.filter((_, k) => !shown.includes(k)).map((key) => key.name);
  return names.length ? `, over all runs with whatever ${names.join(", ")}.` : ".";
}

function drawLines() {
  if (!D.keys.length) return undefined;
  const kx = Number($("line-x").value), kl = Number($("line-by").value);
  const grouped = kl >= 0 && D.keys[kl].levels.length <= MAX_LEVELS;
  const traces = [];
  (grouped ? D.keys[kl].levels : [null]).forEach((level, index) => {
    const points = new Map(), dots = { x: [], y: [], text: [] };
    for (const group of ranked().filter((g) => level === null || g.levels[kl] === level)) {
      for (const run of accuraciesOf(group)) {
        const x = along(group, kx), y = 100 * run[accuracy()];
        points.set(x, [...(points.get(x) || []), y]);
        dots.x.push(x); dots.y.push(y); dots.text.push(plain(`${group.label}, seed ${run.seed}`));
      }
    }
    if (!points.size) return;
    const color = colorOf(index), legendgroup = String(level);
    traces.push({ ...dots, mode: "markers", marker: { color: faint(color, 0.5), size: 6 }, legendgroup,
      showlegend: false, hovertemplate: "%{y:.2f} %<br>%{text}<extra></extra>" });
    const order = D.keys[kx].numeric ? (a, b) => a - b
      : (a, b) => D.keys[kx].levels.indexOf(a) - D.keys[kx].levels.indexOf(b);
    const xs = [...points.keys()].sort(order);
    // a line through a search's scattered points would be a scribble
    if (!grouped && xs.length > 2 * MAX_LEVELS) return;
    const name = level === null ? "mean" : plain(`${D.keys[kl].name}=${level}`);
    traces.push({ x: xs, y: xs.map((x) => mean(points.get(x))), mode: "lines+markers", name, legendgroup,
      line: { color, dash: dashOf(index) }, marker: { size: 8, symbol: index % 12 },
      text: xs.map((x) => `mean of ${points.get(x).length}`),
      hovertemplate: `%{y:.2f} %, %{text}<br>${name}<extra></extra>` });
  });
  $("line-note").textContent = "A dot is a finished run, a line goes through the means" +
    overOthers(grouped ? [kx, kl] : [kx]);
  if (!traces.length) return nothing("line-chart", "no finished run with this accuracy");
  return draw("line-chart", traces, keyAxis(D.keys[kx], ranked(), kx), axis(accuracyTitle()));
}

function levelsOf(k) {
  // a search tries more values than a map has room for: those are put in bins
  const key = D.keys[k];
  if (!key.numeric || key.levels.length <= 2 * MAX_LEVELS) return { names: key.levels, at: (g) => g.levels[k] };
  const to = key.log ? Math.log : (v) => v, from = key.log ? Math.exp : (v) => v;
  const values = D.groups.map((g) => to(g.values[k]));
  const low = Math.min(...values), width = (Math.max(...values) - low) / BINS || 1;
  const names = Array.from({ length: BINS }, (_, i) =>
    [i, i + 1].map((n) => Number(from(low + n * width).toPrecision(2))).join(" to "));
  return { names, at: (g) => names[Math.min(BINS - 1, Math.floor((to(g.values[k]) - low) / width))] };
}

function drawHeat() {
  if (D.keys.length < 2) return undefined;
  const kx = Number($("heat-x").value), ky = Number($("heat-y").value);
  $("heat-note").textContent = "Mean accuracy of the finished runs in each cell" + overOthers([kx, ky]);
  if (kx === ky) return nothing("heat-chart", "choose two different keys");
  const x = levelsOf(kx), y = levelsOf(ky), cells = new Map();
  for (const group of ranked()) {
    const at = JSON.stringify([x.at(group), y.at(group)]);
    cells.set(at, [...(cells.get(at) || []), ...accuraciesOf(group).map((run) => 100 * run[accuracy()])]);
  }
  const cell = (a, b) => cells.get(JSON.stringify([a, b])) || [];
  const z = y.names.map((b) => x.names.map((a) => (cell(a, b).length ? mean(cell(a, b)) : null)));
  if (!z.flat().some((v) => v !== null)) return nothing("heat-chart", "no finished run with this accuracy");
  const customdata = y.names.map((b) => x.names.map((a) => cell(a, b).length));
  return heat("heat-chart", x.names.map(plain), y.names.map(plain), z, { decimals: 1, customdata, title: accuracyTitle(),
    xTitle: D.keys[kx].key, yTitle: D.keys[ky].key, hover: "%{z:.2f} %, %{customdata} runs<br>%{x}, %{y}" });
}

// --- costs, seeds, mistakes --------------------------------------------------------------------

function front(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || b.y - a.y), kept = [];
  for (const point of sorted) if (!kept.length || point.y > kept[kept.length - 1].y) kept.push(point);
  return kept;
}

function drawCost(id, cost, title, length) {
  const dots = [], means = [];
  for (const group of ranked()) {
    const runs = accuraciesOf(group).filter((run) => run[cost] !== null);
    if (!runs.length) continue;
    for (const run of runs) dots.push({ x: run[cost] / length, y: 100 * run[accuracy()],
      text: plain(`${group.label}, seed ${run.seed}`) });
    means.push({ x: mean(runs.map((r) => r[cost])) / length, y: mean(runs.map((r) => 100 * r[accuracy()])),
      text: plain(`${group.label}, mean of ${runs.length}`) });
  }
  if (!means.length) return nothing(id, "no finished run");
  const best = front(means), xs = means.map((p) => p.x), low = Math.min(...xs), high = Math.max(...xs);
  const trace = (points, more) => ({ x: points.map((p) => p.x), y: points.map((p) => p.y), mode: "markers",
    text: points.map((p) => p.text), hovertemplate: "%{y:.2f} %, %{x:,.5~g}<br>%{text}<extra></extra>", ...more });
  const traces = [
    trace(dots, { name: "run", marker: { color: faint(colorOf(5), 0.5), size: 5 } }),
    trace(means, { name: "configuration (mean)", marker: { color: colorOf(0), size: 9 } }),
    trace(best, { name: "Pareto front", mode: "lines+markers", line: { color: colorOf(1), shape: "hv" },
      marker: { color: colorOf(1), size: 11, symbol: "diamond" } }),
  ];
  const scale = low > 0 && high >= 8 * low ? logAxis(xs) : { rangemode: "tozero" };
  return draw(id, traces, axis(title, scale), axis(accuracyTitle()));
}

function drawCosts() {
  const times = D.runs.map((run) => run.fit_s || 0), longest = Math.max(...times, 0);
  const [unit, length] = longest >= 7200 ? ["h", 3600] : longest >= 300 ? ["min", 60] : ["s", 1];
  return [drawCost("time-chart", "fit_s", `training time (${unit})`, length),
    drawCost("size-chart", "parameters", "parameters (count)", 1)];
}

function drawSeeds() {
  const groups = ranked().filter((g) => g[accuracy()]).slice(0, isNarrow() ? 15 : 25).reverse();
  if (!groups.length) return nothing("seed-chart", "no finished run");
  const most = isNarrow() ? 22 : 42, names = groups.map((g) => cut(g.label, most)), rows = groups.map((_, i) => i);
  const dots = { x: [], y: [], text: [] }, middle = { x: [], above: [], below: [] };
  groups.forEach((group, row) => {
    const { mean: m, low, high } = group[accuracy()];
    middle.x.push(100 * m);
    // no accuracy lies beyond 0 or 100: what Student's t says there is cut off
    middle.above.push(high === null ? 0 : 100 * (Math.min(1, high) - m));
    middle.below.push(low === null ? 0 : 100 * (m - Math.max(0, low)));
    accuraciesOf(group).forEach((run) => {
      dots.x.push(100 * run[accuracy()]); dots.y.push(row); dots.text.push(plain(`${group.label}, seed ${run.seed}`));
    });
  });
  const traces = [
    { ...dots, mode: "markers", name: "run", marker: { color: faint(colorOf(5), 0.7), size: 8 },
      hovertemplate: "%{x:.2f} %<br>%{text}<extra></extra>" },
    { x: middle.x, y: rows, mode: "markers", name: "mean and 95% interval",
      marker: { color: colorOf(0), size: 9, symbol: "diamond" }, text: groups.map((g) => plain(g.label)),
      error_x: { type: "data", symmetric: false, array: middle.above, arrayminus: middle.below, color: colorOf(0) },
      hovertemplate: "mean %{x:.2f} %<br>%{text}<extra></extra>" },
  ];
  $("seed-chart").style.height = `${Math.max(300, 110 + 26 * groups.length)}px`;
  return draw("seed-chart", traces, axis(accuracyTitle()),
    axis("", { tickvals: rows, ticktext: names, range: [-0.7, rows.length - 0.3] }));
}

function drawConfusion() {
  const its = D.data[dataSet()]?.confusions || [];
  const shown = its[Number($("confusion-of").value) || 0];
  if (!shown) return nothing("confusion-chart", "no saved predictions");
  const names = shown.classes.map(plain);
  const share = shown.counts.map((row) => {
    const total = row.reduce((a, b) => a + b, 0);
    return row.map((count) => (total ? (100 * count) / total : 0));
  });
  return heat("confusion-chart", names, names, share, { decimals: 0, low: 0, high: 100, customdata: shown.counts,
    title: "share of the true class (%)", xTitle: "predicted class", yTitle: "true class", yAxis: { autorange: "reversed" },
    hover: "%{y} taken for %{x}: %{z:.1f} %, %{customdata} images" });
}
