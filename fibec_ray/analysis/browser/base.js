// What all figures of a report page use: elements, numbers, ticks, the tip. The first script that page.py inlines.

const FIGURES = JSON.parse(document.getElementById("figures").textContent);
const NS = "http://www.w3.org/2000/svg";
const LOOKS = JSON.parse(document.getElementById("looks").textContent); // analysis/palette.py
const VIRIDIS = LOOKS.viridis.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const KINDS = LOOKS.palette.length;
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

// The outline of a series' marker around a point.
function marker(index, x, y, radius) {
  const corners = LOOKS.palette[index % KINDS].marker;
  return `M${corners.map(([dx, dy]) => `${(x + radius * dx).toFixed(1)},${(y - radius * dy).toFixed(1)}`).join("L")}Z`;
}

function dashes(index, width) {
  return LOOKS.palette[index % KINDS].dash.map((length) => length * width).join(" ");
}

// What a legend shows of a line: its colour, dashes and marker.
function lineKey(index) {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("class", `line-key s${index % KINDS}`);
  svg.setAttribute("viewBox", "0 0 30 12");
  shape(svg, "path", { class: "line", d: "M0,6L30,6", "stroke-dasharray": dashes(index, 2) });
  shape(svg, "path", { class: "dot", d: marker(index, 15, 6, 4.2) });
  return svg;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

// Round steps of 1, 2, 2.5 or 5: at most `count` of them.
function ticks(low, high, count, whole) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  let step = (whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((factor) => factor * power).find((size) => size >= raw) || power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step)
    found.push(Number(at.toPrecision(12)));
  return found;
}

function range(values) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values)
    if (value !== null && value !== undefined) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  return low > high
    ? [0, 1]
    : low === high
      ? [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05]
      : [low, high];
}

function show(event, content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const width = tip.offsetWidth,
    room = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, room - width - 8)) + scrollX}px`;
  tip.style.top = `${event.clientY + 18 + scrollY}px`;
}
