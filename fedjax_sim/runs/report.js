"use strict";
// The report's curves: draws the embedded data as SVG. No library, no network.
(() => {
  addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });

  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dashes = ["", "7 4", "2 4", "9 3 2 3"];
  const colour = (run) => `var(--c${run % 7})`;
  const dash = (run) => dashes[Math.floor(run / 7) % dashes.length];
  const hidden = new Set();
  let panels = [];
  let marked = null; // the round under the cursor

  // "Infinity" and "-Infinity" travel as words, null stands for NaN.
  const number = (value) => (value === null ? NaN : Number(value));
  const words = (value) => {
    if (Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    return String(Number(value.toPrecision(4)));
  };
  const points = (run, metric) => {
    const [rounds, values] = data.runs[run].curves[metric] || [[], []];
    return rounds.map((round, i) => [round, number(values[i])]);
  };

  function make(name, attributes, parent, text) {
    const svg = ["svg", "g", "path", "line", "circle", "polygon", "text"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  const widen = ([a, b], each) => [Math.min(a, each), Math.max(b, each)];
  const extent = (numbers) => numbers.reduce(widen, [Infinity, -Infinity]);

  // Round numbers between low and high, about `count` of them.
  function ticks(low, high, count, whole) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const steps = (whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((factor) => factor * power);
    const distance = (each) => Math.abs(Math.log(each / rough));
    let step = steps.reduce((best, each) => (distance(each) < distance(best) ? each : best));
    if (whole) step = Math.max(1, Math.round(step));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
      found.push(Number((i * step).toPrecision(10)));
    }
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
      for (const factor of high - low < 2 ? [1, 2, 5] : [1]) found.push(Number(`${factor}e${power}`));
    }
    const inside = found.filter((each) => Math.log10(each) >= low && Math.log10(each) <= high);
    const every = Math.ceil(inside.length / 7);
    if (inside.length > 1) return inside.filter((_, i) => i % every === 0);
    return [0.1, 0.5, 0.9].map((share) => Number((10 ** (low + share * (high - low))).toPrecision(3)));
  }

  // What a panel shows, as a file: a row a run and round, a column a metric.
  function csvLink(metric, members, parent) {
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const rows = [["run", "rounds completed", ...members].map(quoted)];
    data.runs.forEach(({ name }, run) => {
      const columns = members.map((member) => new Map(points(run, member)));
      const rounds = [...new Set(columns.flatMap((column) => [...column.keys()]))].sort((a, b) => a - b);
      for (const round of rounds) rows.push([quoted(name), round, ...columns.map((column) => column.get(round) ?? "")]);
    });
    const href = `data:text/csv;charset=utf-8,${encodeURIComponent(rows.map((row) => row.join(",")).join("\n"))}`;
    make("a", { class: "data", download: `${metric.replaceAll("/", "-")}.csv`, href }, parent, "CSV");
  }

  // A panel: [title, metrics]; several metrics are quantiles of one thing, from low to high. `span`: rounds shown.
  function drawPanel([metric, members], span, parent) {
    const log = byId("log").checked;
    const middle = members[Math.floor(members.length / 2)];
    const short = (member) => (members.length > 1 ? member.slice(member.lastIndexOf("_p") + 1) : "");
    const figure = make("figure", { class: "panel", "data-metric": metric }, parent);
    const caption = make("figcaption", {}, figure, [metric, members.map(short).join(" ")].filter(Boolean).join(", "));
    if (data.words[metric]) caption.title = data.words[metric];
    const width = Math.max(260, figure.clientWidth);
    const height = Math.round(Math.min(380, Math.max(210, width * 0.5)));
    const left = 52, right = width - 10, top = 10, bottom = height - 34;

    const lines = [];
    let lost = 0;
    data.runs.forEach((_, run) => {
      if (hidden.has(run)) return;
      for (const member of members) {
        const all = points(run, member);
        const drawn = all.filter(([, value]) => Number.isFinite(value) && (!log || value > 0));
        lost += all.length - drawn.length;
        if (all.length) lines.push({ run, member, all, drawn });
      }
    });
    const drawn = lines.flatMap((line) => line.drawn);
    const off = `${lost} ${lost === 1 ? "point" : "points"} off the scale`;
    if (lost) make("span", { class: "note" }, caption, ` (${off})`);
    csvLink(metric, members, figure);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0 }, figure);
    svg.setAttribute("aria-label", `${metric} over rounds. Arrow keys read values.`);
    if (!drawn.length) {
      make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "nothing to draw");
      return { mark: () => "" };
    }

    const scale = (value) => (log ? Math.log10(value) : value);
    let [x0, x1] = span;
    let [y0, y1] = extent(drawn.map(([, value]) => scale(value)));
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1]; // one round
    const pad = y1 > y0 ? (y1 - y0) * 0.05 : Math.abs(y0) * 0.05 || 0.5;
    [y0, y1] = [y0 - pad, y1 + pad];
    const x = (round) => left + ((round - x0) / (x1 - x0)) * (right - left);
    const y = (value) => bottom - ((scale(value) - y0) / (y1 - y0)) * (bottom - top);

    for (const tick of log ? logTicks(y0, y1) : ticks(y0, y1, 5, false)) {
      make("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }, svg);
      make("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, svg, words(tick));
    }
    for (const tick of ticks(x0, x1, Math.max(2, width / 90), true)) {
      make("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, svg, String(tick));
    }
    make("line", { class: "grid", x1: left, x2: right, y1: bottom, y2: bottom }, svg);
    make("text", { x: (left + right) / 2, y: height - 3, "text-anchor": "middle" }, svg, "round");
    const places = ({ drawn }) => drawn.map(([round, value]) => [x(round).toFixed(2), y(value).toFixed(2)]);
    if (members.length > 1) {
      for (const run of new Set(lines.map((line) => line.run))) {
        const mine = lines.filter((line) => line.run === run);
        const around = [...places(mine[0]), ...places(mine[mine.length - 1]).reverse()];
        make("polygon", { class: "band", points: around.join(" "), style: `fill: ${colour(run)}` }, svg);
      }
    }
    for (const line of lines) {
      const { run, member } = line;
      const at = places(line);
      const d = at.map(([px, py], i) => `${i ? "L" : "M"}${px} ${py}`).join("");
      const look = { style: `stroke: ${colour(run)}`, "stroke-dasharray": dash(run) };
      const rank = member === middle ? "curve" : "curve outer";
      make("path", { class: rank, d, "data-run": run, ...look }, svg);
      if (at.length <= 40) {
        const r = member === middle ? 2.6 : 1.6;
        for (const [cx, cy] of at) make("circle", { cx, cy, r, style: `fill: ${colour(run)}` }, svg);
      }
    }

    const overlay = make("g", {}, svg);
    const tip = make("div", { class: "tip", hidden: "" }, figure);
    const rounds = [...new Set(lines.flatMap((line) => line.all.map(([round]) => round)))].sort((a, b) => a - b);

    // Every panel shows the round under the cursor; the one that has the cursor, or the focus, says the values.
    function mark(round, active) {
      overlay.replaceChildren();
      tip.replaceChildren();
      const outside = round === null || round < rounds[0] || round > rounds[rounds.length - 1];
      tip.hidden = outside || active !== metric;
      if (outside) return "";
      make("line", { class: "cursor", x1: x(round), x2: x(round), y1: top, y2: bottom }, overlay);
      make("div", {}, tip, `round ${round}`);
      const said = [];
      for (const { run, member, all } of lines) {
        const off = ([each]) => Math.abs(each - round);
        const [at, value] = all.reduce((best, each) => (off(each) < off(best) ? each : best));
        const row = make("div", {}, tip);
        make("span", { class: "swatch", style: `border-color: ${colour(run)}` }, row);
        const who = [data.runs.length > 1 ? data.runs[run].name : "", short(member)].filter(Boolean).join(" ");
        const text = (who ? `${who}: ` : "") + words(value) + (at === round ? "" : ` (round ${at})`);
        row.append(text);
        said.push(text);
        if (Number.isFinite(value) && (!log || value > 0)) {
          make("circle", { cx: x(at), cy: y(value), r: 4, style: `fill: ${colour(run)}` }, overlay);
        }
      }
      const share = (x(round) / width) * 100;
      tip.style.left = share < 50 ? `calc(${share}% + 12px)` : "auto";
      tip.style.right = share < 50 ? "auto" : `calc(${100 - share}% + 12px)`;
      return `${metric}, round ${round}: ${said.join("; ")}`;
    }

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = x0 + (((event.clientX - box.left) / box.width) * width - left) / (right - left) * (x1 - x0);
      markAll(rounds.reduce((best, each) => (Math.abs(each - at) < Math.abs(best - at) ? each : best)), metric);
    });
    svg.addEventListener("pointerleave", () => markAll(null));
    svg.addEventListener("blur", () => markAll(null));
    svg.addEventListener("keydown", (event) => {
      const last = rounds.length - 1;
      const here = marked === null ? -1 : rounds.findLastIndex((round) => round <= marked);
      const back = here < 0 ? last : Math.max(here - 1, 0);
      const to = { ArrowRight: Math.min(here + 1, last), ArrowLeft: back, Home: 0, End: last };
      if (event.key === "Escape") markAll(null);
      if (!(event.key in to)) return;
      event.preventDefault();
      markAll(rounds[to[event.key]], metric);
      byId("said").textContent = mark(marked, metric);
    });
    return { mark };
  }

  function markAll(round, active) {
    marked = round;
    for (const panel of panels) panel.mark(round, active);
  }

  function draw() {
    const chosen = byId("metric").value;
    const shown = chosen === "" ? data.main : [[chosen, [chosen]]];
    const parent = byId("panels");
    parent.replaceChildren();
    parent.classList.toggle("one", shown.length === 1);
    marked = null;
    // All panels span the same rounds, so that they can be read below one another.
    const visible = data.runs.map((_, run) => run).filter((run) => !hidden.has(run));
    const all = shown.flatMap(([, members]) => visible.flatMap((run) => members.flatMap((each) => points(run, each))));
    const span = extent(all.filter(([, value]) => Number.isFinite(value)).map(([round]) => round));
    panels = shown.map((panel) => drawPanel(panel, span, parent));
  }

  function start() {
    const select = byId("metric");
    if (data.main.length > 1 || data.main[0][1].length > 1) make("option", { value: "" }, select, `overview (${data.main.length} panels)`);
    for (const metric of data.metrics) make("option", { value: metric }, select, metric);
    if (data.main.length === 1 && data.main[0][1].length === 1) select.value = data.main[0][0];
    select.addEventListener("change", draw);
    byId("log").addEventListener("change", draw);
    if (data.runs.length > 1) {
      data.runs.forEach(({ name }, run) => {
        const button = make("button", { type: "button", "aria-pressed": "true", "data-run": run }, byId("legend"));
        const style = `border-color: ${colour(run)}; border-top-style: ${dash(run) ? "dashed" : "solid"}`;
        make("span", { class: "swatch", style }, button);
        button.append(name);
        button.addEventListener("click", () => {
          hidden.has(run) ? hidden.delete(run) : hidden.add(run);
          button.setAttribute("aria-pressed", String(!hidden.has(run)));
          draw();
        });
      });
    }
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== width) draw();
      width = innerWidth;
    });
    draw();
  }

  if (byId("metric")) start();
  const differing = byId("differing");
  if (differing) {
    differing.addEventListener("change", () => byId("config").classList.toggle("only-differing", differing.checked));
  }
  document.documentElement.dataset.ready = "yes";
})();
