const cells = runs.flatMap((run, number) => run.cells.map((cell) => ({ ...cell, run: number })));
const chosen = Object.fromEntries(
  ["dataset", "attack", "defence"].map((name) => [name, document.getElementById(name)]),
);
const sorting = { run: null, column: null, down: true };
const unique = (values) => [...new Set(values)];
const percent = (x) => (x === null ? null : 100 * x);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

for (const [name, select] of Object.entries(chosen)) {
  select.append(new Option("all", ""));
  for (const value of unique(cells.map((cell) => cell[name]))) select.append(new Option(value, value));
  select.addEventListener("change", show);
}

function passes(cell) {
  return Object.entries(chosen).every(([name, select]) => !select.value || cell[name] === select.value);
}

function text(cell) {
  if (!cell) return "";
  if (cell.status !== "done") return cell.status === "diverged" ? "diverged" : "n/a";
  const spread = cell.spread === null ? "" : ` \u00b1 ${percent(cell.spread).toFixed(1)}`;
  return percent(cell.final).toFixed(1) + spread;
}

const number = (cell) => (cell && cell.status === "done" ? cell.final : null);

function table(run, shown) {
  const columns = unique(shown.map((cell) => cell.attack));
  let rows = unique(shown.map((cell) => cell.row));
  const at = new Map(shown.map((cell) => [JSON.stringify([cell.row, cell.attack]), cell]));
  const find = (row, column) => at.get(JSON.stringify([row, column]));
  if (sorting.run === run) {
    const key = (row) => (sorting.column === "" ? row : number(find(row, sorting.column)));
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null); // at the end either way
      return (x < y ? -1 : x > y ? 1 : 0) * (sorting.down ? -1 : 1);
    };
    rows = [...rows].sort(order);
  }
  const element = document.createElement("table");
  const head = element.createTHead().insertRow();
  for (const name of ["", ...columns]) {
    const button = Object.assign(document.createElement("button"), { textContent: name || "defence" });
    button.addEventListener("click", () => {
      const same = sorting.run === run && sorting.column === name;
      Object.assign(sorting, { run, column: name, down: same ? !sorting.down : name !== "" });
      show();
    });
    const cell = document.createElement("th");
    cell.scope = "col";
    if (sorting.run === run && sorting.column === name)
      cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    cell.append(button);
    head.append(cell);
  }
  const ends = new Map(
    columns.map((column) => {
      const known = rows.map((row) => number(find(row, column))).filter((x) => x !== null);
      return [column, known.length > 1 ? [Math.min(...known), Math.max(...known)] : [null, null]];
    }),
  );
  const body = element.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    Object.assign(line.insertCell(), { textContent: row, title: row });
    for (const column of columns) {
      const [cell, [least, most]] = [find(row, column), ends.get(column)];
      const box = Object.assign(line.insertCell(), { textContent: text(cell) });
      if (number(cell) === null || least === most) continue;
      if (cell.final === most) box.className = "best";
      if (cell.final === least) box.className = "worst";
    }
  }
  return element;
}

function showTables(shown) {
  const place = document.getElementById("tables");
  place.replaceChildren();
  runs.forEach((run, index) => {
    const own = shown.filter((cell) => cell.run === index);
    if (!own.length) return;
    const title = Object.assign(document.createElement("h2"), { textContent: run.title });
    const caption = Object.assign(document.createElement("p"), {
      className: "soft",
      textContent: `${run.caption} \u25b2 best and \u25bc worst of a column; a click on its head sorts.`,
    });
    const box = Object.assign(document.createElement("div"), { className: "wide" });
    box.append(table(index, own));
    place.append(title, caption, box);
  });
}

function draw(id, traces, layout, height) {
  document.getElementById(`${id}-section`).hidden = !traces.length;
  if (!traces.length) return;
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), automargin: true };
  const base = {
    height,
    margin: { l: 10, r: 10, t: 10, b: 10 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style("--text") },
    legend: { orientation: "h", y: -0.2 },
  };
  const axes = { xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  const config = {
    responsive: true,
    displaylogo: false,
    toImageButtonOptions: { format: "svg", filename: id },
  };
  Plotly.react(id, traces, { ...base, ...layout, ...axes }, config);
}

const several = runs.length > 1;
const named = (cell) => (several ? `${cell.row} [${runs[cell.run].name}]` : cell.row);
const short = (name) => (name.length > 34 ? `${name.slice(0, 33)}\u2026` : name);

function showHeat(shown) {
  const rows = unique(shown.map(named));
  const columns = unique(shown.map((cell) => cell.attack));
  if (rows.length < 2 || columns.length < 2) return draw("heat", [], {}, 0);
  const at = new Map(shown.map((cell) => [JSON.stringify([named(cell), cell.attack]), cell]));
  const z = rows.map((row) =>
    columns.map((column) => percent(number(at.get(JSON.stringify([row, column])) ?? null))),
  );
  const trace = {
    type: "heatmap", x: columns, y: rows, z, zmin: 0, zmax: 100, colorscale: "Viridis",
    texttemplate: columns.length * rows.length <= 400 ? "%{z:.0f}" : "",
    hovertemplate: "%{y}<br>%{x}: %{z:.1f} %<extra></extra>", colorbar: { thickness: 10 },
  };
  const layout = {
    yaxis: { autorange: "reversed", tickvals: rows, ticktext: rows.map(short) },
    xaxis: { side: "top", tickangle: -40 },
  };
  draw("heat", [trace], layout, 160 + 24 * rows.length);
}

const colours = ["#4c78d8", "#e07b39", "#3fa34d", "#c84b4b", "#8d6cc9", "#9c755f", "#d472b0",
  "#7f7f7f", "#b5a642", "#2fa4b5"];

function ofOneAttack(shown) {
  const attack = chosen.attack.value || (shown[0] ?? {}).attack;
  return [attack, shown.filter((cell) => cell.attack === attack)];
}

function showCurves(shown) {
  const [attack, own] = ofOneAttack(shown.filter((cell) => cell.rounds.length));
  document.getElementById("curves-attack").textContent = attack ? `Under: ${attack}.` : "";
  const traces = own.flatMap((cell, i) => {
    const colour = colours[i % colours.length];
    const line = { color: colour, dash: ["solid", "dash", "dot"][Math.floor(i / 10) % 3] };
    const band = {
      x: [...cell.rounds, ...[...cell.rounds].reverse()],
      y: [...cell.high, ...[...cell.low].reverse()].map(percent),
      fill: "toself", fillcolor: `${colour}22`, line: { width: 0 }, hoverinfo: "skip",
      showlegend: false, legendgroup: String(i), mode: "lines",
    };
    const mean = {
      x: cell.rounds, y: cell.mean.map(percent), name: short(named(cell)), mode: "lines", line,
      legendgroup: String(i), hovertemplate: `%{y:.1f} %<extra>${short(named(cell))}</extra>`,
    };
    return cell.spread === null ? [mean] : [band, mean];
  });
  const layout = {
    xaxis: { title: { text: "round" } },
    yaxis: { title: { text: "test accuracy (%)" }, range: [0, 100] },
  };
  draw("curves", traces, layout, 460);
}

function showSelection(shown) {
  const [, own] = ofOneAttack(shown.filter((cell) => cell.selection));
  if (!own.length) return draw("selection", [], {}, 0);
  const lines = own.flatMap((cell) => [
    [`${short(named(cell))}: honest`, cell.selection.honest],
    [`${short(named(cell))}: malicious`, cell.selection.malicious],
  ]);
  const longest = own.reduce((a, b) => (b.selection.rounds.length > a.selection.rounds.length ? b : a));
  const trace = {
    type: "heatmap", x: longest.selection.rounds, y: lines.map(([name]) => name),
    z: lines.map(([, values]) => values.map(percent)), zmin: 0, zmax: 100, colorscale: "Viridis",
    hovertemplate: "%{y}<br>round %{x}: %{z:.0f} %<extra></extra>", colorbar: { thickness: 10 },
  };
  const layout = { xaxis: { title: { text: "round" } }, yaxis: { autorange: "reversed" } };
  draw("selection", [trace], layout, 120 + 22 * lines.length);
}

function showClients(shown) {
  const [, own] = ofOneAttack(shown.filter((cell) => cell.histogram));
  const traces = own.map((cell, i) => ({
    type: "bar", name: short(named(cell)), marker: { color: colours[i % colours.length] },
    x: cell.histogram.map((_, bin) => (100 * (bin + 0.5)) / cell.histogram.length), y: cell.histogram,
  }));
  const layout = {
    barmode: "group",
    xaxis: { title: { text: "accuracy (%)" }, range: [0, 100] },
    yaxis: { title: { text: "clients" } },
  };
  draw("clients", traces, layout, 380);
}

function show() {
  const shown = cells.filter(passes);
  showTables(shown);
  showHeat(shown);
  showCurves(shown);
  showSelection(shown);
  showClients(shown);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
