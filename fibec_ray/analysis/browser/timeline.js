// Bars over time as SVG, one row for each device; called by cards.js.

function timeline(holder, figure) {
  const width = holder.clientWidth,
    left = 52,
    right = 20,
    count = figure.rows.length;
  const inner = Math.min(420, Math.max(110, count * (count > 40 ? 4 : 16))),
    tall = inner / count,
    height = inner + 46;
  const [low, high] = range(figure.spans.flatMap((span) => [span[1], span[2]]));
  const x = (value) => left + ((value - low) / (high - low)) * (width - left - right);
  const svg = document.createElementNS(NS, "svg");
  for (const [key, value] of [
    ["viewBox", `0 0 ${width} ${height}`],
    ["role", "img"],
    ["aria-label", `${figure.title}: ${figure.y_label} by ${figure.x_label}`],
  ])
    svg.setAttribute(key, value);
  for (const value of ticks(low, high, width < 360 ? 4 : 7)) {
    shape(svg, "line", { class: "grid", x1: x(value), x2: x(value), y1: 8, y2: 8 + inner });
    shape(svg, "text", { class: "tick", x: x(value), y: 8 + inner + 16, "text-anchor": "middle" }, number(value));
  }
  const every = Math.max(1, Math.ceil(14 / tall));
  figure.rows.forEach((label, row) => {
    if (row % every === 0)
      shape(svg, "text", { class: "tick", x: left - 6, y: 8 + (row + 0.5) * tall + 4, "text-anchor": "end" }, label);
  });
  shape(
    svg,
    "text",
    { class: "label", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" },
    figure.x_label,
  );
  figure.spans.forEach(([row, start, end, name, , again], at) =>
    shape(svg, "rect", {
      class: `bar s${name % KINDS}${again ? " again" : ""}`,
      "data-at": at,
      x: x(start),
      width: Math.max(1, x(end) - x(start)),
      y: 8 + row * tall + tall * 0.1,
      height: tall * 0.8,
    }),
  );
  svg.addEventListener("pointermove", (event) => {
    const span = figure.spans[event.target.dataset.at];
    if (!span) {
      tip.hidden = true;
      return;
    }
    const [row, start, end, name, rounds, again] = span;
    show(event, [
      element("b", {}, `${figure.y_label} ${figure.rows[row]}, round ${rounds}`),
      element(
        "div",
        {},
        `from ${number(start)}, for ${number(end - start)}, ${figure.names[name]}${again ? `, lost ${again} times before` : ""}`,
      ),
    ]);
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
  holder.replaceChildren(svg);
}
