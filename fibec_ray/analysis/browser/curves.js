// Lines, bars and dots as SVG, with a legend that hides and shows series; called by cards.js.

function frameOf(figure, shown, width, height) {
  const xs = range(shown.flatMap((one) => one.x));
  const all = shown.flatMap((one) => [...one.y, ...(one.low || []), ...(one.high || [])]);
  let ys = figure.fraction ? [0, 1] : range([...all, ...figure.levels.map(([, y]) => y)]);
  if (figure.kind === "bars") {
    ys[0] = Math.min(0, ys[0]);
    xs[0] -= gap(shown) / 2;
    xs[1] += gap(shown) / 2;
  }
  if (!figure.fraction) {
    const room = (ys[1] - ys[0]) * 0.05;
    if (figure.kind !== "bars") ys[0] -= room;
    ys[1] += room;
  }
  const pad = { left: 52, right: 20, top: 10, bottom: 38 };
  const inset = figure.kind === "bars" ? 0 : 8; // room for markers and error bars at both ends
  const x = (value) =>
    pad.left + inset + ((value - xs[0]) / (xs[1] - xs[0])) * (width - pad.left - pad.right - 2 * inset);
  const y = (value) => height - pad.bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (height - pad.top - pad.bottom);
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
    shape(
      svg,
      "text",
      { class: "tick", x: x(value), y: height - pad.bottom + 16, "text-anchor": "middle" },
      number(value),
    );
  }
  shape(svg, "line", {
    class: "axis",
    x1: pad.left,
    x2: width - pad.right,
    y1: height - pad.bottom,
    y2: height - pad.bottom,
  });
  shape(
    svg,
    "text",
    { class: "label", x: (pad.left + width - pad.right) / 2, y: height - 4, "text-anchor": "middle" },
    figure.x_label,
  );
}

// A missing value leaves a gap: the path starts again with 'M' after it.
function path(one, frame) {
  let text = "",
    open = false;
  one.x.forEach((value, at) => {
    if (one.y[at] === null) {
      open = false;
      return;
    }
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

function marks(svg, figure, one, frame, width, count) {
  const colour = `s${one.index % KINDS}`;
  if (figure.kind === "bars") {
    one.x.forEach((value, at) => {
      const top = Math.min(frame.y(one.y[at]), frame.y(0)),
        bottom = Math.max(frame.y(one.y[at]), frame.y(0));
      shape(svg, "rect", {
        class: `bar ${colour}`,
        x: frame.x(value) - width / 2,
        width,
        y: top,
        height: Math.max(0, bottom - top),
      });
    });
    return;
  }
  if (one.low && !one.bars) {
    shape(svg, "path", { class: `band ${colour}`, d: band(one, frame) });
    for (const edge of [one.low, one.high])
      shape(svg, "path", { class: `edge ${colour}`, d: path({ x: one.x, y: edge }, frame) });
  }
  if (one.bars) errorBars(svg, one, frame, colour, count);
  if (figure.kind === "lines")
    shape(svg, "path", { class: `line ${colour}`, d: path(one, frame), "stroke-dasharray": dashes(one.index, 2) });
  const every = figure.kind === "dots" ? 1 : Math.ceil(one.x.length / 24);
  one.x.forEach((value, at) => {
    if (one.y[at] !== null && at % every === 0)
      shape(svg, "path", { class: `dot ${colour}`, d: marker(one.index, frame.x(value), frame.y(one.y[at]), 3.6) });
  });
}

// Beside the points, so that the bars of several series at one x stay apart.
function errorBars(svg, one, frame, colour, count) {
  const aside = (one.index - (count - 1) / 2) * Math.min(4, 24 / count);
  for (const at of one.bars) {
    if (one.low[at] === null || one.high[at] === null) continue;
    const x = frame.x(one.x[at]) + aside,
      low = frame.y(one.low[at]),
      high = frame.y(one.high[at]);
    const d = `M${x - 2.5},${low}h5M${x - 2.5},${high}h5M${x},${low}V${high}`;
    shape(svg, "path", { class: `whisker ${colour}`, d });
  }
}

function plot(holder, figure, hidden) {
  const width = holder.clientWidth,
    height = width < 420 ? 230 : 270;
  const shown = figure.series.map((one, index) => ({ ...one, index })).filter((one) => !hidden.has(one.label));
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${figure.title}: ${figure.y_label} against ${figure.x_label}`);
  const frame = frameOf(figure, shown, width, height);
  axes(svg, figure, frame);
  figure.levels.forEach(([, y], at) =>
    shape(svg, "line", {
      class: `level l${at}`,
      x1: frame.pad.left,
      x2: width - frame.pad.right,
      y1: frame.y(y),
      y2: frame.y(y),
    }),
  );
  const bar = Math.max(
    1,
    Math.min(40, (gap(shown) / (frame.xs[1] - frame.xs[0])) * (width - frame.pad.left - frame.pad.right) * 0.8),
  );
  shown.forEach((one) => marks(svg, figure, one, frame, bar, figure.series.length));
  const cross = shape(svg, "line", {
    class: "cross",
    y1: frame.pad.top,
    y2: height - frame.pad.bottom,
    visibility: "hidden",
  });
  svg.addEventListener("pointermove", (event) => point(event, svg, figure, shown, frame, cross));
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cross.setAttribute("visibility", "hidden");
  });
  holder.replaceChildren(svg);
}

function point(event, svg, figure, shown, frame, cross) {
  const box = svg.getBoundingClientRect(),
    at = ((event.clientX - box.left) * frame.width) / box.width;
  let near = null;
  for (const one of shown)
    for (const x of one.x) if (near === null || Math.abs(frame.x(x) - at) < Math.abs(frame.x(near) - at)) near = x;
  if (near === null) return;
  cross.setAttribute("x1", frame.x(near));
  cross.setAttribute("x2", frame.x(near));
  cross.setAttribute("visibility", "visible");
  const lines = shown.flatMap((one) => {
    const reach = (12 * (frame.xs[1] - frame.xs[0])) / frame.width; // axes of cost: each line has its own x
    let best = -1;
    one.x.forEach((x, i) => {
      if (Math.abs(x - near) <= reach && (best < 0 || Math.abs(x - near) < Math.abs(one.x[best] - near))) best = i;
    });
    if (best < 0) return [];
    const range = one.low ? ` (${number(one.low[best])} to ${number(one.high[best])})` : "";
    return [
      element(
        "div",
        {},
        figure.kind === "bars" ? element("i", { class: `key s${one.index % KINDS}` }) : lineKey(one.index),
        `${one.label}: ${number(one.y[best])}${range}`,
      ),
    ];
  });
  show(event, [element("b", {}, `${figure.x_label}: ${number(near)}`), ...lines]);
}

function legend(figure, hidden, redraw) {
  const keys = figure.series.map((one, index) => {
    const key = element(
      "button",
      { type: "button", class: "key-button", "aria-pressed": String(!hidden.has(one.label)) },
      figure.kind === "bars" ? element("i", { class: `key s${index % KINDS}` }) : lineKey(index),
      one.label,
    );
    key.addEventListener("click", () => {
      hidden.has(one.label) ? hidden.delete(one.label) : hidden.add(one.label);
      redraw();
    });
    return key;
  });
  const levels = figure.levels.map(([label], at) =>
    element("span", { class: "key-button" }, element("i", { class: `key level l${at}` }), label),
  );
  return figure.series.length + figure.levels.length > 1 ? [...keys, ...levels] : [];
}
