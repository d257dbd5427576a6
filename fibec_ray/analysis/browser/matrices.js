// Heat maps on a canvas, with the scale of their colours; called by cards.js.

function colour(share) {
  const at = Math.min(VIRIDIS.length - 1.001, Math.max(0, share) * (VIRIDIS.length - 1)),
    from = VIRIDIS[Math.floor(at)],
    to = VIRIDIS[Math.floor(at) + 1];
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (at % 1))).join(",")})`;
}

// Of a category: a colour of the palette, or of the scale where there are more categories than that.
function kindColour(at, count) {
  if (count > KINDS) return colour(at / (count - 1));
  return getComputedStyle(document.documentElement).getPropertyValue(`--s${at}`);
}

function heat(holder, figure) {
  const width = holder.clientWidth,
    left = 52,
    right = 20,
    below = 38,
    count = figure.rows.length;
  const inner = Math.min(420, Math.max(110, count * (count > 40 ? 4 : 20))),
    height = inner + below + 8;
  const kinds = figure.names.length,
    [low, high] = kinds ? [0, Math.max(1, kinds - 1)] : range(figure.values.flat());
  const canvas = element("canvas", {
    role: "img",
    "aria-label": `${figure.title}: ${figure.value_label} by ${figure.x_label}`,
  });
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const draw = canvas.getContext("2d"),
    wide = (width - left - right) / figure.columns.length,
    high_ = inner / count;
  draw.scale(scale, scale);
  const snap = (value) => Math.round(value * scale) / scale; // whole pixels: no seams between cells
  figure.values.forEach((line, row) =>
    line.forEach((value, column) => {
      if (value === null) return;
      draw.fillStyle = kinds ? kindColour(value, kinds) : colour((value - low) / (high - low));
      const x = snap(left + column * wide),
        y = snap(8 + row * high_);
      draw.fillRect(x, y, snap(left + (column + 1) * wide) - x, snap(8 + (row + 1) * high_) - y);
    }),
  );
  labels(draw, figure, { left, inner, wide, high_, width, height });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(),
      column = Math.floor((event.clientX - box.left - left) / wide),
      row = Math.floor((event.clientY - box.top - 8) / high_);
    const value = (figure.values[row] || [])[column];
    if (value === undefined) {
      tip.hidden = true;
      return;
    }
    const said = value === null ? "–" : kinds ? figure.names[value] : number(value);
    show(event, [
      element("b", {}, `${figure.y_label} ${figure.rows[row]}, ${figure.x_label} ${number(figure.columns[column])}`),
      element("div", {}, `${figure.value_label}: ${said}`),
    ]);
  });
  canvas.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
  holder.replaceChildren(canvas);
}

function labels(draw, figure, { left, inner, wide, high_, width, height }) {
  const style = getComputedStyle(document.body);
  draw.fillStyle = style.getPropertyValue("--quiet");
  draw.font = `12px ${style.fontFamily}`;
  draw.textAlign = "right";
  draw.textBaseline = "middle";
  const every = Math.max(1, Math.ceil(14 / high_));
  figure.rows.forEach((label, row) => {
    if (row % every === 0) draw.fillText(label, left - 6, 8 + (row + 0.5) * high_);
  });
  draw.textAlign = "center";
  const first = figure.columns[0],
    last = figure.columns[figure.columns.length - 1],
    step = figure.columns.length > 1 ? figure.columns[1] - first : 1;
  for (const value of ticks(first, last, width < 420 ? 4 : 7, true))
    draw.fillText(number(value), left + ((value - first) / step + 0.5) * wide, 8 + inner + 12);
  draw.fillText(figure.x_label, (left + width - 20) / 2, height - 6);
}

function scaleOf(figure) {
  if (figure.names.length && figure.names.length <= 12) {
    return figure.names.map((name, at) => {
      const key = element("i", { class: "key" });
      key.style.background = kindColour(at, figure.names.length);
      return element("span", { class: "key-button" }, key, name);
    });
  }
  const there = figure.values.flat().filter((value) => value !== null),
    low = there.reduce((a, b) => Math.min(a, b)),
    high = there.reduce((a, b) => Math.max(a, b));
  if (low === high)
    return [element("span", { class: "key-button" }, `${figure.value_label}: ${number(low)} everywhere`)];
  const bar = element("i", { class: "scale" });
  bar.style.background = `linear-gradient(to right, ${VIRIDIS.map((stop) => `rgb(${stop.join(",")})`).join(",")})`;
  return [element("span", { class: "key-button" }, `${figure.value_label} `, number(low), bar, number(high))];
}
