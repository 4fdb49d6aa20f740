// Lines with confidence bands; the numbers under the pointer appear beside it.
(() => {
  "use strict";
  const { h, svg } = CLT;
  const MARKS = ["circle", "square", "triangle", "diamond"];
  function mark(kind, x, y, color, hollow) {
    const at = { fill: hollow ? "var(--surface)" : color, stroke: color, "stroke-width": 1.5 };
    if (kind === "circle") return svg("circle", { cx: x, cy: y, r: 3.4, ...at });
    const d = {
      square: `M${x - 3.2} ${y - 3.2}h6.4v6.4h-6.4z`,
      triangle: `M${x} ${y - 4.4}l4.2 7.4h-8.4z`,
      diamond: `M${x} ${y - 4.6}l4.4 4.6-4.4 4.6-4.4-4.6z`,
    }[kind];
    return svg("path", { d, ...at });
  }
  // series: [{name, x: [], y: [], low?: [], high?: [], dash?, color?}], level: [{name, y, color}] horizontal lines
  CLT.charts.lines = ({
    series,
    levels = [],
    xLabel,
    yLabel,
    xTicks,
    xText = (v) => CLT.num(v),
    yText = (v) => CLT.num(v),
    yZero = false,
    yDomain,
    yTicks,
    label,
    height = 320,
  }) => {
    const xsAll = series.flatMap((s) => s.x),
      ysAll = [
        ...series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]),
        ...levels.map((l) => l.y),
      ].filter((v) => v !== null);
    const xd = CLT.extent(xsAll, { pad: 0.03 }),
      yd = yDomain || CLT.extent(ysAll, { zero: yZero });
    const thin = (ticks, width) => {
      const step = Math.ceil((ticks.length * 44) / width);
      return ticks.filter((_, i) => i % step === 0);
    };
    function draw(width) {
      const f = CLT.charts.frame({
        width,
        height,
        xs: { domain: xd, ticks: thin(xTicks || CLT.ticks(xd[0], xd[1], 7), width) },
        ys: { domain: yd, ticks: yTicks || CLT.ticks(yd[0], yd[1]) },
        xLabel,
        yLabel,
        xText,
        yText,
        label,
      });
      f.root.append(
        ...levels.map((l) =>
          svg("line", {
            x1: f.left,
            x2: width - f.right,
            y1: f.y(l.y),
            y2: f.y(l.y),
            stroke: l.color,
            "stroke-width": 1.6,
            "stroke-dasharray": l.dash || "7 4",
          }),
        ),
      );
      series.forEach((s, n) => {
        const color = s.color || CLT.series(n),
          points = s.x.map((v, i) => [v, s.y[i], i]).filter((p) => p[1] !== null);
        if (s.low) {
          const banded = points.filter((p) => s.low[p[2]] !== null && s.high[p[2]] !== null);
          if (banded.length > 1)
            f.root.append(
              svg("path", {
                d: `M${banded.map((p) => `${f.x(p[0])} ${f.y(s.high[p[2]])}`).join("L")}L${[...banded]
                  .reverse()
                  .map((p) => `${f.x(p[0])} ${f.y(s.low[p[2]])}`)
                  .join("L")}Z`,
                fill: color,
                opacity: 0.14,
              }),
            );
          if (banded.length === 1)
            f.root.append(
              ...banded.map((p) =>
                svg("line", {
                  x1: f.x(p[0]),
                  x2: f.x(p[0]),
                  y1: f.y(s.low[p[2]]),
                  y2: f.y(s.high[p[2]]),
                  stroke: color,
                  "stroke-width": 1.4,
                  opacity: 0.75,
                }),
              ),
            );
        }
        f.root.append(
          svg("path", {
            d: `M${points.map((p) => `${f.x(p[0])} ${f.y(p[1])}`).join("L")}`,
            fill: "none",
            stroke: color,
            "stroke-width": 2,
            "stroke-dasharray": s.dash || null,
            "stroke-linejoin": "round",
          }),
        );
        f.root.append(
          ...(s.marks === false ? [] : points).map((p) =>
            mark(MARKS[n % MARKS.length], f.x(p[0]), f.y(p[1]), color, Boolean(s.dash)),
          ),
        );
      });
      const cursor = svg("line", { class: "cursor", y1: f.top, y2: height - f.bottom, visibility: "hidden" });
      f.root.append(cursor);
      const tip = h("div", { class: "tip", hidden: true });
      const positions = [...new Set(xsAll)].sort((a, b) => a - b);
      const read = (event) => {
        const r = f.root.getBoundingClientRect(),
          at = ((event.clientX - r.left) / r.width) * width;
        const nearest = positions.reduce(
          (best, v) => (Math.abs(f.x(v) - at) < Math.abs(f.x(best) - at) ? v : best),
          positions[0],
        );
        const px = f.x(nearest);
        cursor.setAttribute("x1", px);
        cursor.setAttribute("x2", px);
        cursor.setAttribute("visibility", "visible");
        tip.textContent = [
          `${xLabel || ""} ${xText(nearest)}`,
          ...series
            .map((s) => {
              const i = s.x.indexOf(nearest);
              return i < 0 || s.y[i] === null ? null : `${s.name}: ${yText(s.y[i])}`;
            })
            .filter(Boolean),
        ].join("\n");
        tip.hidden = false;
        const left = (px / width) * r.width,
          flip = left > r.width * 0.6;
        tip.style.left = flip ? "auto" : `${left + 12}px`;
        tip.style.right = flip ? `${r.width - left + 12}px` : "auto";
        tip.style.top = "8px";
      };
      // a finger taps, a mouse moves
      f.root.addEventListener("pointermove", read);
      f.root.addEventListener("pointerdown", read);
      f.root.addEventListener("pointerleave", () => {
        tip.hidden = true;
        cursor.setAttribute("visibility", "hidden");
      });
      return [f.root, tip];
    }
    const legend = h(
      "ul",
      { class: "legend" },
      series.map((s, n) =>
        h(
          "li",
          {},
          h("i", { class: s.dash ? "dash" : null, style: { "border-color": s.color || CLT.series(n) } }),
          s.name,
        ),
      ),
      levels.map((l) => h("li", {}, h("i", { class: "dash", style: { "border-color": l.color } }), l.name)),
    );
    return h("div", {}, CLT.responsive(draw), legend);
  };
})();
