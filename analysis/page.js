// Draws the figures of a report page: lines, bars and dots as SVG, heat maps on a canvas. Inlined by page.py.
"use strict";
(() => {
const FIGURES = JSON.parse(document.getElementById("figures").textContent);
const NS = "http://www.w3.org/2000/svg";
const VIRIDIS = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
const KINDS = 8; // series colours in page.css
const tip = document.body.appendChild(element("div", { class: "tip", hidden: "" }));

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(parent, name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

// Round steps of 1, 2 or 5: at most `count` of them.
function ticks(low, high, count, whole) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw) || power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null && value !== undefined) { low = Math.min(low, value); high = Math.max(high, value); }
  return low > high ? [0, 1] : low === high ? [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05] : [low, high];
}

function frameOf(figure, shown, width, height) {
  const xs = range(shown.flatMap((one) => one.x));
  const all = shown.flatMap((one) => [...one.y, ...(one.low || []), ...(one.high || [])]);
  let ys = figure.fraction ? [0, 1] : range([...all, ...figure.levels.map(([, y]) => y)]);
  if (figure.kind === "bars") { ys[0] = Math.min(0, ys[0]); xs[0] -= gap(shown) / 2; xs[1] += gap(shown) / 2; }
  if (!figure.fraction) { const room = (ys[1] - ys[0]) * 0.05; if (figure.kind !== "bars") ys[0] -= room; ys[1] += room; }
  const pad = { left: 52, right: 20, top: 10, bottom: 38 };
  const x = (value) => pad.left + (value - xs[0]) / (xs[1] - xs[0]) * (width - pad.left - pad.right);
  const y = (value) => height - pad.bottom - (value - ys[0]) / (ys[1] - ys[0]) * (height - pad.top - pad.bottom);
  return { xs, ys, x, y, pad, width, height };
}

function gap(shown) {
  const xs = [...new Set(shown.flatMap((one) => one.x))].sort((a, b) => a - b);
  return xs.slice(1).reduce((least, value, at) => Math.min(least, value - xs[at]), xs.length > 1 ? Infinity : 1);
}

function axes(svg, figure, frame) {
  const { xs, ys, x, y, pad, width, height } = frame;
  for (const value of ticks(ys[0], ys[1], 5, figure.whole_y)) {
    shape(svg, "line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(value), y2: y(value) });
    shape(svg, "text", { class: "tick", x: pad.left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value));
  }
  for (const value of ticks(xs[0], xs[1], width < 360 ? 4 : 7, figure.whole_x)) {
    shape(svg, "text", { class: "tick", x: x(value), y: height - pad.bottom + 16, "text-anchor": "middle" }, number(value));
  }
  shape(svg, "line", { class: "axis", x1: pad.left, x2: width - pad.right, y1: height - pad.bottom, y2: height - pad.bottom });
  shape(svg, "text", { class: "label", x: (pad.left + width - pad.right) / 2, y: height - 4, "text-anchor": "middle" }, figure.x_label);
}

// 'M' begins again after a gap: a value that is not there is not drawn over.
function path(one, frame) {
  let text = "", open = false;
  one.x.forEach((value, at) => {
    if (one.y[at] === null) { open = false; return; }
    text += `${open ? "L" : "M"}${frame.x(value).toFixed(1)},${frame.y(one.y[at]).toFixed(1)}`;
    open = true;
  });
  return text;
}

function band(one, frame) {
  const there = one.x.map((_, at) => at).filter((at) => one.low[at] !== null && one.high[at] !== null);
  const upper = there.map((at) => `${frame.x(one.x[at]).toFixed(1)},${frame.y(one.high[at]).toFixed(1)}`);
  const lower = there.map((at) => `${frame.x(one.x[at]).toFixed(1)},${frame.y(one.low[at]).toFixed(1)}`).reverse();
  return there.length ? `M${[...upper, ...lower].join("L")}Z` : "";
}

function marks(svg, figure, one, frame, width) {
  const colour = `s${one.index % KINDS}`;
  if (figure.kind === "bars") {
    one.x.forEach((value, at) => {
      const top = Math.min(frame.y(one.y[at]), frame.y(0)), bottom = Math.max(frame.y(one.y[at]), frame.y(0));
      shape(svg, "rect", { class: `bar ${colour}`, x: frame.x(value) - width / 2, width, y: top, height: Math.max(0, bottom - top) });
    });
    return;
  }
  if (one.low) shape(svg, "path", { class: `band ${colour}`, d: band(one, frame) });
  if (figure.kind === "lines") shape(svg, "path", { class: `line ${colour}${one.index >= KINDS ? " dashed" : ""}`, d: path(one, frame) });
  if (figure.kind === "dots" || one.x.length <= 40) {
    one.x.forEach((value, at) => {
      if (one.y[at] !== null) shape(svg, "circle", { class: `dot ${colour}`, cx: frame.x(value), cy: frame.y(one.y[at]), r: figure.kind === "dots" ? 3.5 : 2.2 });
    });
  }
}

function plot(holder, figure, hidden) {
  const width = holder.clientWidth, height = width < 420 ? 230 : 270;
  const shown = figure.series.map((one, index) => ({ ...one, index })).filter((one) => !hidden.has(one.label));
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${figure.title}: ${figure.y_label} against ${figure.x_label}`);
  const frame = frameOf(figure, shown, width, height);
  axes(svg, figure, frame);
  figure.levels.forEach(([, y], at) => shape(svg, "line", { class: `level l${at}`, x1: frame.pad.left, x2: width - frame.pad.right, y1: frame.y(y), y2: frame.y(y) }));
  const bar = Math.max(1, Math.min(40, gap(shown) / (frame.xs[1] - frame.xs[0]) * (width - frame.pad.left - frame.pad.right) * 0.8));
  shown.forEach((one) => marks(svg, figure, one, frame, bar));
  const cross = shape(svg, "line", { class: "cross", y1: frame.pad.top, y2: height - frame.pad.bottom, visibility: "hidden" });
  svg.addEventListener("pointermove", (event) => point(event, svg, figure, shown, frame, cross));
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); });
  holder.replaceChildren(svg);
}

function point(event, svg, figure, shown, frame, cross) {
  const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) * frame.width / box.width;
  let near = null;
  for (const one of shown) for (const x of one.x) if (near === null || Math.abs(frame.x(x) - at) < Math.abs(frame.x(near) - at)) near = x;
  if (near === null) return;
  cross.setAttribute("x1", frame.x(near)); cross.setAttribute("x2", frame.x(near)); cross.setAttribute("visibility", "visible");
  const lines = shown.flatMap((one) => {
    const reach = 12 * (frame.xs[1] - frame.xs[0]) / frame.width; // axes of cost: each line has its own x
    let best = -1;
    one.x.forEach((x, i) => { if (Math.abs(x - near) <= reach && (best < 0 || Math.abs(x - near) < Math.abs(one.x[best] - near))) best = i; });
    if (best < 0) return [];
    const range = one.low ? ` (${number(one.low[best])} to ${number(one.high[best])})` : "";
    return [element("div", {}, element("i", { class: `key s${one.index % KINDS}` }), `${one.label}: ${number(one.y[best])}${range}`)];
  });
  show(event, [element("b", {}, `${figure.x_label}: ${number(near)}`), ...lines]);
}

function show(event, content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const width = tip.offsetWidth, room = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, room - width - 8)) + scrollX}px`;
  tip.style.top = `${event.clientY + 18 + scrollY}px`;
}

function legend(figure, hidden, redraw) {
  const keys = figure.series.map((one, index) => {
    const key = element("button", { type: "button", class: "key-button", "aria-pressed": String(!hidden.has(one.label)) },
      element("i", { class: `key s${index % KINDS}${index >= KINDS ? " dashed" : ""}` }), one.label);
    key.addEventListener("click", () => { hidden.has(one.label) ? hidden.delete(one.label) : hidden.add(one.label); redraw(); });
    return key;
  });
  const levels = figure.levels.map(([label], at) => element("span", { class: "key-button" }, element("i", { class: `key level l${at}` }), label));
  return figure.series.length + figure.levels.length > 1 ? [...keys, ...levels] : [];
}

function colour(share) {
  const at = Math.min(VIRIDIS.length - 1.001, Math.max(0, share) * (VIRIDIS.length - 1)), from = VIRIDIS[Math.floor(at)], to = VIRIDIS[Math.floor(at) + 1];
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (at % 1))).join(",")})`;
}

function heat(holder, figure) {
  const width = holder.clientWidth, left = 52, right = 20, below = 38, count = figure.rows.length;
  const inner = Math.min(420, Math.max(110, count * (count > 40 ? 4 : 20))), height = inner + below + 8;
  const kinds = figure.names.length, [low, high] = kinds ? [0, Math.max(1, kinds - 1)] : range(figure.values.flat());
  const canvas = element("canvas", { role: "img", "aria-label": `${figure.title}: ${figure.value_label} by ${figure.x_label}` });
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale; canvas.height = height * scale; canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const draw = canvas.getContext("2d"), wide = (width - left - right) / figure.columns.length, high_ = inner / count;
  draw.scale(scale, scale);
  const snap = (value) => Math.round(value * scale) / scale; // whole pixels: no seams between cells
  figure.values.forEach((line, row) => line.forEach((value, column) => {
    if (value === null) return;
    draw.fillStyle = colour((value - low) / (high - low));
    const x = snap(left + column * wide), y = snap(8 + row * high_);
    draw.fillRect(x, y, snap(left + (column + 1) * wide) - x, snap(8 + (row + 1) * high_) - y);
  }));
  labels(draw, figure, { left, inner, wide, high_, width, height });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), column = Math.floor((event.clientX - box.left - left) / wide), row = Math.floor((event.clientY - box.top - 8) / high_);
    const value = (figure.values[row] || [])[column];
    if (value === undefined) { tip.hidden = true; return; }
    const said = value === null ? "–" : kinds ? figure.names[value] : number(value);
    show(event, [element("b", {}, `${figure.y_label} ${figure.rows[row]}, ${figure.x_label} ${number(figure.columns[column])}`), element("div", {}, `${figure.value_label}: ${said}`)]);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  holder.replaceChildren(canvas);
}

function timeline(holder, figure) {
  const width = holder.clientWidth, left = 52, right = 20, count = figure.rows.length;
  const inner = Math.min(420, Math.max(110, count * (count > 40 ? 4 : 16))), tall = inner / count, height = inner + 46;
  const [low, high] = range(figure.spans.flatMap((span) => [span[1], span[2]]));
  const x = (value) => left + (value - low) / (high - low) * (width - left - right);
  const svg = document.createElementNS(NS, "svg");
  for (const [key, value] of [["viewBox", `0 0 ${width} ${height}`], ["role", "img"], ["aria-label", `${figure.title}: ${figure.y_label} by ${figure.x_label}`]]) svg.setAttribute(key, value);
  for (const value of ticks(low, high, width < 360 ? 4 : 7)) {
    shape(svg, "line", { class: "grid", x1: x(value), x2: x(value), y1: 8, y2: 8 + inner });
    shape(svg, "text", { class: "tick", x: x(value), y: 8 + inner + 16, "text-anchor": "middle" }, number(value));
  }
  const every = Math.max(1, Math.ceil(14 / tall));
  figure.rows.forEach((label, row) => { if (row % every === 0) shape(svg, "text", { class: "tick", x: left - 6, y: 8 + (row + 0.5) * tall + 4, "text-anchor": "end" }, label); });
  shape(svg, "text", { class: "label", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, figure.x_label);
  figure.spans.forEach(([row, start, end, name, , again], at) => shape(svg, "rect", {
    class: `bar s${name % KINDS}${again ? " again" : ""}`, "data-at": at, x: x(start), width: Math.max(1, x(end) - x(start)), y: 8 + row * tall + tall * 0.1, height: tall * 0.8,
  }));
  svg.addEventListener("pointermove", (event) => {
    const span = figure.spans[event.target.dataset.at];
    if (!span) { tip.hidden = true; return; }
    const [row, start, end, name, rounds, again] = span;
    show(event, [element("b", {}, `${figure.y_label} ${figure.rows[row]}, round ${rounds}`), element("div", {}, `from ${number(start)}, for ${number(end - start)}, ${figure.names[name]}${again ? `, lost ${again} times before` : ""}`)]);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  holder.replaceChildren(svg);
}

function labels(draw, figure, { left, inner, wide, high_, width, height }) {
  const style = getComputedStyle(document.body);
  draw.fillStyle = style.getPropertyValue("--quiet"); draw.font = `12px ${style.fontFamily}`;
  draw.textAlign = "right"; draw.textBaseline = "middle";
  const every = Math.max(1, Math.ceil(14 / high_));
  figure.rows.forEach((label, row) => { if (row % every === 0) draw.fillText(label, left - 6, 8 + (row + 0.5) * high_); });
  draw.textAlign = "center";
  const first = figure.columns[0], last = figure.columns[figure.columns.length - 1], step = figure.columns.length > 1 ? figure.columns[1] - first : 1;
  for (const value of ticks(first, last, width < 420 ? 4 : 7, true)) draw.fillText(number(value), left + ((value - first) / step + 0.5) * wide, 8 + inner + 12);
  draw.fillText(figure.x_label, (left + width - 20) / 2, height - 6);
}

function scaleOf(figure) {
  if (figure.names.length && figure.names.length <= 12) {
    return figure.names.map((name, at) => {
      const key = element("i", { class: "key" });
      key.style.background = colour(at / Math.max(1, figure.names.length - 1));
      return element("span", { class: "key-button" }, key, name);
    });
  }
  const there = figure.values.flat().filter((value) => value !== null), low = there.reduce((a, b) => Math.min(a, b)), high = there.reduce((a, b) => Math.max(a, b));
  if (low === high) return [element("span", { class: "key-button" }, `${figure.value_label}: ${number(low)} everywhere`)];
  const bar = element("i", { class: "scale" });
  bar.style.background = `linear-gradient(to right, ${VIRIDIS.map((stop) => `rgb(${stop.join(",")})`).join(",")})`;
  return [element("span", { class: "key-button" }, `${figure.value_label} `, number(low), bar, number(high))];
}

function mount(card) {
  const figures = card.dataset.figures.split(",").map((at) => FIGURES[at]), hidden = new Set();
  const title = element("h3"), choices = element("div", { class: "choices" }), holder = element("div", { class: "plot" });
  const keys = element("div", { class: "keys" }), caption = element("figcaption"), unit = element("div", { class: "unit" });
  let current = 0;
  const redraw = () => {
    if (!holder.clientWidth) return;
    const figure = figures[current];
    title.textContent = figures.length > 1 ? figure.title.replace(/ by .*| *: .*/, "") : figure.title;
    unit.textContent = figure.y_label;
    caption.textContent = figure.caption;
    if (figure.kind === "timeline") {
      timeline(holder, figure);
      const named = figure.names.length <= 12 ? figure.names : [];
      keys.replaceChildren(...named.map((name, at) => element("span", { class: "key-button" }, element("i", { class: `key s${at % KINDS}` }), name)));
    } else if (figure.kind === "heat") { heat(holder, figure); keys.replaceChildren(...scaleOf(figure)); }
    else { plot(holder, figure, hidden); keys.replaceChildren(...legend(figure, hidden, redraw)); }
    [...choices.children].forEach((button, at) => button.setAttribute("aria-pressed", String(at === current)));
  };
  if (figures.length > 1) figures.forEach((figure, at) => {
    const button = element("button", { type: "button" }, figure.choice);
    button.addEventListener("click", () => { current = at; redraw(); });
    choices.append(button);
  });
  card.replaceChildren(title, choices, unit, holder, keys, caption);
  let width = 0;
  new ResizeObserver(() => { if (holder.clientWidth !== width) { width = holder.clientWidth; redraw(); } }).observe(holder);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

document.querySelectorAll("figure[data-figures]").forEach(mount);
const chooser = document.getElementById("chooser");
if (chooser) {
  const pick = () => document.querySelectorAll("section.run").forEach((run) => { run.hidden = run.id !== chooser.value; });
  chooser.addEventListener("change", pick);
  pick();
}
})();
