// A heat map as a real table: every number can be read by eye, by copy and by a screen reader.
(() => {
  "use strict";
  const { h } = CLT;
  // values[row][column]; null leaves the cell out. `scale(v)` gives -1..1; `show(v)` the text.
  CLT.charts.heatmap = ({ rows, columns, values, scale, show, title, corner, label }) => {
    const cells = (r) =>
      columns.map((_c, i) => {
        const v = values[r][i];
        if (v === null || v === undefined) return h("td", { class: "void" }, h("span", { class: "sr" }, "none"));
        const t = scale(v);
        return h(
          "td",
          {
            class: CLT.tintIsStrong(t) ? "strong" : null,
            style: { background: CLT.tint(t) },
            title: title ? title(r, i, v) : null,
          },
          show(v),
        );
      });
    return h(
      "table",
      { class: "heat fit", "aria-label": label },
      h("colgroup", {}, h("col", { class: "head" })),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { class: "axis", scope: "col" }, corner || ""),
          columns.map((c) => h("th", { scope: "col" }, c)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((name, r) => h("tr", {}, h("th", { scope: "row" }, name), cells(r))),
      ),
    );
  };
  CLT.charts.scaleBar = (low, high, signed) => {
    const stops = Array.from({ length: 17 }, (_, i) => CLT.tint(signed ? (i - 8) / 8 : i / 16)).join(",");
    return h(
      "div",
      { class: "scale", "aria-hidden": "true" },
      low,
      h("i", { style: { background: `linear-gradient(to right, ${stops})` } }),
      high,
    );
  };
})();
