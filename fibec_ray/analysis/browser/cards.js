// One card for each figure of the page: title, choices, figure, keys, caption. The last of the scripts.

function mount(card) {
  const figures = card.dataset.figures.split(",").map((at) => FIGURES[at]),
    hidden = new Set();
  const title = element("h3"),
    choices = element("div", { class: "choices" }),
    holder = element("div", { class: "plot" });
  const keys = element("div", { class: "keys" }),
    caption = element("figcaption"),
    unit = element("div", { class: "unit" });
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
      keys.replaceChildren(
        ...named.map((name, at) =>
          element("span", { class: "key-button" }, element("i", { class: `key s${at % KINDS}` }), name),
        ),
      );
    } else if (figure.kind === "heat") {
      heat(holder, figure);
      keys.replaceChildren(...scaleOf(figure));
    } else {
      plot(holder, figure, hidden);
      keys.replaceChildren(...legend(figure, hidden, redraw));
    }
    [...choices.children].forEach((button, at) => button.setAttribute("aria-pressed", String(at === current)));
  };
  if (figures.length > 1)
    figures.forEach((figure, at) => {
      const button = element("button", { type: "button" }, figure.choice);
      button.addEventListener("click", () => {
        current = at;
        redraw();
      });
      choices.append(button);
    });
  card.replaceChildren(title, choices, unit, holder, keys, caption);
  let width = holder.clientWidth;
  redraw(); // at once: a page that is printed or saved may never be told of a size
  new ResizeObserver(() => {
    if (holder.clientWidth !== width) {
      width = holder.clientWidth;
      redraw();
    }
  }).observe(holder);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

const chooser = document.getElementById("chooser");
if (chooser) {
  const pick = () =>
    document.querySelectorAll("section.run").forEach((run) => {
      run.hidden = run.id !== chooser.value;
    });
  chooser.addEventListener("change", pick);
  pick();
}
document.querySelectorAll("figure[data-figures]").forEach(mount);

// A table that is wider than its card says so, and has a shadow at its edge until it is scrolled to the end.
function scrollable(box) {
  const wide = box.scrollWidth > box.clientWidth + 1;
  box.classList.toggle("wide", wide);
  box.classList.toggle("rest", wide && box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  box.previousElementSibling.hidden = !wide;
}
document.querySelectorAll(".scroll").forEach((box) => {
  box.addEventListener("scroll", () => scrollable(box));
  new ResizeObserver(() => scrollable(box)).observe(box);
  scrollable(box);
});
