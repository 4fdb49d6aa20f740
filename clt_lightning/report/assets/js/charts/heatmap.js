// A heat map as a real table: every number can be read by eye, by copy and by a screen reader.
(() => {
  "use strict";
  const { h } = CLT;
  const css = (rgb) => `rgb(${rgb.join(" ")})`;
  // values[row][column]; null leaves the cell out. `scale(v)` gives -1..1; `show(v)` the text.
  CLT.charts.heatmap = ({ rows, columns, values, scale, show, title, corner, label }) => {
    const tinted = [];
    const cells = (r) =>
      columns.map((_, i) => {
        const v = values[r][i];
        if (v === null || v === undefined) return h("td", { class: "void" }, h("span", { class: "sr" }, "none"));
        const cell = h("td", { title: title ? title(r, i, v) : null }, show(v));
        tinted.push([cell, scale(v)]);
        return cell;
      });
    const table = h(
      "table",
      { class: "heat fit", "aria-label": label },
      h("colgroup", {}, h("col", { class: "head" })),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          corner ? h("th", { class: "axis", scope: "col" }, corner) : h("td", { class: "axis" }),
          columns.map((c) => h("th", { scope: "col" }, c)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((name, r) => h("tr", {}, h("th", { scope: "row" }, name), cells(r))),
      ),
    );
    const paint = () => {
      for (const [cell, t] of tinted) {
        const ground = CLT.tint(t);
        cell.style.background = css(ground);
        cell.style.color = CLT.inkOn(ground);
      }
    };
    paint();
    CLT.onTheme(table, paint);
    return table;
  };
  CLT.charts.scaleBar = (low, high, signed) => {
    const bar = h("i");
    const paint = () => {
      const stops = Array.from({ length: 17 }, (_, i) => css(CLT.tint(signed ? (i - 8) / 8 : i / 16)));
      bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    };
    paint();
    CLT.onTheme(bar, paint);
    return h("div", { class: "scale", "aria-hidden": "true" }, low, bar, high);
  };
})();
