const cells = runs.flatMap((run, number) => run.cells.map((cell) => ({ ...cell, run: number })));
const chosen = Object.fromEntries(
  ["dataset", "attack", "defence"].map((name) => [name, document.getElementById(name)]),
);
const sorting = new Map(); // of a table's id: which column, and whether downwards
const several = runs.length > 1;
const few = 10; // rows whose curves, selection and clients are drawn
const narrow = matchMedia("(max-width: 600px)");
const colours = ["#4c78d8", "#e07b39", "#3fa34d", "#c84b4b", "#8d6cc9", "#9c755f", "#d472b0",
  "#7f7f7f", "#b5a642", "#2fa4b5"];

const unique = (values) => [...new Set(values)];
const percent = (x) => (x === null ? null : 100 * x);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const element = (tag, values) => Object.assign(document.createElement(tag), values);
const titled = (run) => (several ? `${run.title} [${run.name}]` : run.title);
const named = (cell) => (several ? `${cell.row} [${runs[cell.run].name}]` : cell.row);
const number = (cell) => (cell ? cell.final : null); // 0 where it diverged

// The middle is cut: names of cells begin and end with what tells them apart.
function short(name) {
  const most = narrow.matches ? 16 : 36;
  if (name.length <= most) return name;
  return `${name.slice(0, most / 2 - 1)}\u2026${name.slice(1 - most / 2)}`;
}

for (const [name, select] of Object.entries(chosen)) {
  select.append(new Option("all", ""));
  for (const value of unique(cells.map((cell) => cell[name]))) select.append(new Option(value, value));
  select.addEventListener("change", show);
}

function passes(cell) {
  return Object.entries(chosen).every(([name, select]) => !select.value || cell[name] === select.value);
}

function note(cell) {
  if (!cell) return "";
  const said = [cell.status === "done" ? "" : cell.status, cell.tuned];
  if (cell.epsilon !== null) said.push(`epsilon ${cell.epsilon}${cell.covered ? "" : ", not for all"}`);
  return said.filter(Boolean).join("; ");
}

// Of cells that differ in the defence alone.
function marks(cells) {
  const known = cells.map(number).filter((x) => x !== null);
  const [least, most] = [Math.min(...known), Math.max(...known)];
  return (cell) => {
    if (number(cell) === null || least === most) return "";
    return cell.final === most ? "best" : cell.final === least ? "worst" : "";
  };
}

// A click on a head sorts the lines by that column's keys; cells without one are last either way.
function sortable(id, heads, lines, again) {
  const by = sorting.get(id);
  const place = by ? heads.findIndex((head) => head.key === by.key) : -1;
  if (place >= 0) {
    const order = (a, b) => {
      const [x, y] = [a[place].key, b[place].key];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (by.down ? -1 : 1);
    };
    lines = [...lines].sort(order);
  }
  const made = element("table", { id });
  const head = made.createTHead().insertRow();
  heads.forEach(({ key, text, className = "" }, column) => {
    const button = element("button", { type: "button", textContent: text });
    button.addEventListener("click", () => {
      const numbers = lines.some((line) => typeof line[column].key === "number");
      const down = place === column ? !by.down : column > 0 && numbers;
      sorting.set(id, { key, down });
      again();
      document.getElementById(id).querySelectorAll("th button")[column].focus();
    });
    const cell = element("th", { scope: "col", className });
    if (place === column) cell.setAttribute("aria-sort", by.down ? "descending" : "ascending");
    cell.append(button);
    head.append(cell);
  });
  const body = made.createTBody();
  for (const line of lines) {
    const row = body.insertRow();
    line.forEach(({ text: textContent, title = "", className = "" }, column) => {
      const cell = element(column ? "td" : "th", { textContent, title, className });
      if (!column) cell.scope = "row";
      row.append(cell);
    });
  }
  return made;
}

// Defences down, attacks across; of each cell what is asked for.
function table(id, shown, entry) {
  const columns = unique(shown.map((cell) => cell.attack));
  const at = new Map(shown.map((cell) => [JSON.stringify([cell.row, cell.attack]), cell]));
  const lines = unique(shown.map((cell) => cell.row)).map((row) => [
    { text: row, key: row, title: row },
    ...columns.map((column) => entry(at.get(JSON.stringify([row, column])))),
  ]);
  const heads = [{ key: "", text: "defence" }, ...columns.map((key) => ({ key, text: key }))];
  return sortable(id, heads, lines, () => showTables(cells.filter(passes)));
}

function accuracies(id, shown) {
  const compared = (cell) => JSON.stringify([cell.attack, cell.setting]);
  const groups = new Map(shown.map((cell) => [compared(cell), []]));
  for (const cell of shown) groups.get(compared(cell)).push(cell);
  const mark = new Map([...groups].map(([key, group]) => [key, marks(group)]));
  return table(id, shown, (cell) => ({
    text: cell ? cell.text : "",
    key: number(cell),
    title: note(cell),
    className: cell ? mark.get(compared(cell))(cell) : "",
  }));
}

function told(heading, caption, made, classes = "wide") {
  const box = element("div", { className: classes });
  box.append(made);
  return [
    element("h2", { textContent: heading }),
    element("p", { className: "soft", textContent: caption }),
    box,
  ];
}

// The best by its worst attack first.
function showRankings() {
  const place = document.getElementById("rankings");
  place.replaceChildren();
  const found = runs.flatMap((run) => run.rankings.map((ranking) => [run, ranking]));
  found.forEach(([run, ranking], index) => {
    const className = (column) => (ranking.words.includes(column) ? "words" : "");
    const heads = ranking.header.map((text, key) => ({ key, text, className: className(key) }));
    const lines = ranking.rows.map((row) =>
      row.map((text, column) => {
        if (className(column)) return { text, key: text, className: className(column) };
        const key = parseFloat(text);
        return { text, key: Number.isNaN(key) ? null : key };
      }),
    );
    const made = sortable(`ranking-${index}`, heads, lines, showRankings);
    const whole = "Whatever is chosen above.";
    const caption = `${ranking.caption} ${whole} A click on a head sorts.`;
    const title = titled({ ...run, title: ranking.title });
    place.append(...told(`Ranking: ${title}`, caption, made, "wide high"));
  });
}

function showTables(shown) {
  const place = document.getElementById("tables");
  place.replaceChildren();
  document.getElementById("nothing").hidden = shown.length > 0;
  runs.forEach((run, index) => {
    const own = shown.filter((cell) => cell.run === index);
    if (!own.length) return;
    const among = own.some((cell) => cell.setting) ? ", among equal settings" : "";
    const marked = `\u25b2 best and \u25bc worst of a column${among}; a click on its head sorts.`;
    const caption = `${run.caption} ${marked}`;
    place.append(...told(titled(run), caption, accuracies(`accuracy-${index}`, own)));
    const planted = own.filter((cell) => cell.success !== null);
    if (!planted.length) return;
    const made = table(`backdoor-${index}`, planted, (cell) => ({
      text: cell ? cell.backdoor : "",
      key: cell ? cell.success : null,
    }));
    place.append(...told(`Backdoors: ${titled(run)}`, run.backdoors, made));
  });
}

// A picture is drawn once it comes near the window: it takes longer than the tables above it.
const waiting = new Map(); // of a picture's id: what draws it
function drawNow(id) {
  waiting.get(id)?.();
  waiting.delete(id);
}
const near = new IntersectionObserver(
  (seen) => seen.filter((one) => one.isIntersecting).forEach((one) => drawNow(one.target.id)),
  { rootMargin: "400px" },
);
addEventListener("beforeprint", () => [...waiting.keys()].forEach(drawNow));

function draw(id, traces, layout, height) {
  document.getElementById(`${id}-section`).hidden = !traces.length;
  waiting.delete(id);
  if (!traces.length) return;
  const place = document.getElementById(id);
  place.style.height = `${height}px`;
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), automargin: true };
  const base = {
    autosize: true,
    uirevision: id,
    margin: { l: 10, r: 10, t: 10, b: 10 },
    paper_bgcolor: style("--back"),
    plot_bgcolor: style("--back"),
    font: { color: style("--text") },
    legend: { orientation: "h", y: -0.2 },
  };
  const axes = { xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    toImageButtonOptions: { format: "svg", filename: id },
  };
  waiting.set(id, () => Plotly.react(id, traces, { ...base, ...layout, ...axes }, config));
  near.unobserve(place); // observed anew, it is told of at once
  near.observe(place);
}

const heat = () => ({
  type: "heatmap",
  zmin: 0,
  zmax: 100,
  colorscale: "Viridis",
  showscale: !narrow.matches,
  colorbar: { thickness: 10 },
});

const labelled = (names) => ({
  autorange: "reversed",
  tickvals: names,
  ticktext: names.map(short),
});

function showHeat(shown) {
  const rows = unique(shown.map(named));
  const columns = unique(shown.map((cell) => cell.attack));
  if (rows.length < 2 || columns.length < 2) return draw("heat", [], {}, 0);
  const at = new Map(shown.map((cell) => [JSON.stringify([named(cell), cell.attack]), cell]));
  const z = rows.map((row) =>
    columns.map((column) => percent(number(at.get(JSON.stringify([row, column])) ?? null))),
  );
  const trace = {
    ...heat(), x: columns, y: rows, z,
    texttemplate: columns.length * rows.length <= 400 && !narrow.matches ? "%{z:.0f}" : "",
    hovertemplate: "%{y}<br>%{x}: %{z:.1f} %<extra></extra>",
  };
  const across = { tickvals: columns, ticktext: columns.map(short), side: "top", tickangle: -40 };
  return draw("heat", [trace], { yaxis: labelled(rows), xaxis: across }, 160 + 24 * rows.length);
}

// Curves and the like are of one attack, the one that is chosen or the first, and of few rows:
// the first of the ranking, or of the accuracies where there is none.
function ofOneAttack(shown) {
  const attack = chosen.attack.value || (shown[0] ?? {}).attack;
  const own = shown.filter((cell) => cell.attack === attack && cell.final !== null);
  if (own.length <= few) return [own, attack ? `Under: ${attack}.` : ""];
  const place = (cell) => cell.rank ?? Infinity;
  const first = [...own].sort((a, b) => place(a) - place(b) || number(b) - number(a));
  const by = own.some((cell) => cell.rank !== null) ? "the ranking" : "accuracy";
  const said = `The first ${few} of ${own.length} by ${by}; a filter shows others.`;
  return [first.slice(0, few), `Under: ${attack}. ${said}`];
}

function showCurves(own) {
  const traces = own.filter((cell) => cell.rounds.length).flatMap((cell, i) => {
    const colour = colours[i % colours.length];
    const line = { color: colour, dash: ["solid", "dash", "dot"][Math.floor(i / 10) % 3] };
    const name = short(named(cell));
    const band = {
      x: [...cell.rounds, ...[...cell.rounds].reverse()],
      y: [...cell.high, ...[...cell.low].reverse()].map(percent),
      fill: "toself", fillcolor: `${colour}22`, line: { width: 0 }, hoverinfo: "skip",
      showlegend: false, legendgroup: String(i), mode: "lines",
    };
    const mean = {
      x: cell.rounds, y: cell.mean.map(percent), name, line, legendgroup: String(i),
      mode: cell.rounds.length < 20 ? "lines+markers" : "lines",
      hovertemplate: `%{y:.1f} %<extra>${name.replace(/</g, "&lt;")}</extra>`,
    };
    return cell.spread === null ? [mean] : [band, mean];
  });
  const layout = {
    xaxis: { title: { text: "round" } },
    yaxis: { title: { text: "test accuracy (%)" }, range: [0, 100] },
  };
  draw("curves", traces, layout, 460);
}

// One map for the cells of a run, whose stretches of rounds are the same.
function showSelection(own) {
  const rows = own.filter((cell) => cell.selection).flatMap((cell) =>
    ["honest", "malicious"]
      .map((kind) => ({ cell, name: `${named(cell)}: ${kind}`, rates: cell.selection[kind] }))
      .filter(({ rates }) => rates.some((x) => x !== null)),
  );
  const traces = unique(rows.map((row) => row.cell.run)).map((run, i) => {
    const lines = rows.flatMap((row, y) => (row.cell.run === run ? [{ ...row, y }] : []));
    const { rounds } = lines[0].cell.selection;
    return {
      ...heat(), x: rounds, y: lines.map((line) => line.y), showscale: i === 0 && !narrow.matches,
      z: lines.map((line) => line.rates.map(percent)),
      text: lines.map((line) => rounds.map(() => line.name)),
      hovertemplate: "%{text}<br>round %{x}: %{z:.0f} %<extra></extra>",
    };
  });
  const yaxis = { ...labelled(rows.map((row) => row.name)), tickvals: rows.map((_, y) => y) };
  const layout = { xaxis: { title: { text: "round" } }, yaxis };
  draw("selection", traces, layout, 120 + 22 * rows.length);
}

function showClients(own) {
  const traces = own.filter((cell) => cell.histogram).map((cell, i) => ({
    type: "bar",
    name: short(named(cell)),
    marker: { color: colours[i % colours.length] },
    x: cell.histogram.map((_, bin) => (100 * (bin + 0.5)) / cell.histogram.length),
    y: cell.histogram,
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
  const [own, said] = ofOneAttack(shown);
  for (const place of document.querySelectorAll(".under")) place.textContent = said;
  showTables(shown);
  showHeat(shown);
  showCurves(own);
  showSelection(own);
  showClients(own);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
narrow.addEventListener("change", show);
showRankings();
show();
