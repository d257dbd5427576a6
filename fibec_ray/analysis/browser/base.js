// What all figures of a report page use: elements, numbers, ticks, the tip. The first script that page.py inlines.

const FIGURES = JSON.parse(document.getElementById("figures").textContent);
const NS = "http://www.w3.org/2000/svg";
const VIRIDIS = [
  [68, 1, 84],
  [65, 68, 135],
  [42, 120, 142],
  [34, 168, 132],
  [122, 209, 81],
  [253, 231, 37],
];
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
