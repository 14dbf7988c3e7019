"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function config(narrow) {
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(name).trim();
    const text = color("--text"), soft = color("--soft"), line = color("--line");
    return {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      view: { stroke: null },
      axis: { labelColor: text, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelOverlap: "greedy", labelSeparation: 6 },
      legend: { labelColor: text, titleColor: soft, labelFontSize: 12, symbolSize: 90, ...(narrow ? { columns: 1 } : {}) },
      line: { color: text },
      text: { color: text, fontSize: 12 },
    };
  }

  let drawing = Promise.resolve();
  function draw(theme) {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    drawing = drawing.then(() => Promise.all([...document.querySelectorAll(".chart")].map((place) => {
      const spec = specs[Number(place.dataset.chart)];
      const canvas = Boolean(spec.usermeta && spec.usermeta.canvas);
      // The interpreter (ast) needs no eval, which the page's policy forbids.
      return window.vegaEmbed(place, spec, { mode: "vega-lite", ast: true, actions: false, renderer: canvas ? "canvas" : "svg", config: config(place.clientWidth < 520) });
    }))).then(() => { root.dataset.drawn = theme; });
    return drawing;
  }

  button.addEventListener("click", () => draw(root.dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", (event) => draw(event.matches ? "dark" : "light"));
  window.addEventListener("beforeprint", () => { if (root.dataset.theme === "dark") draw("light"); });

  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.querySelectorAll("thead th")];
    const body = table.querySelector("tbody");
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.children[column].dataset.value;
      const numeric = [...body.rows].some((row) => row.children[column].classList.contains("number"));
      const sorted = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");  // what has no value comes last, up or down
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en");
        return down ? -order : order;
      });
      body.append(...sorted);
    }));
  }

  draw(dark.matches ? "dark" : "light");
})();
