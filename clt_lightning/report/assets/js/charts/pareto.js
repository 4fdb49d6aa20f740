// Two numbers of every run: points with whiskers, and the front of those that no other one beats on both.
(() => {
  "use strict";
  const { svg } = CLT;
  // runs that no other one beats on both axes; `better` is 1 where more is better
  function front(points, better) {
    return points.map((p) =>
      points.every((q) => q === p || !(q.x <= p.x && better * q.y >= better * p.y && (q.x < p.x || q.y !== p.y))),
    );
  }

  CLT.charts.pareto = ({ points, better, yLabel, yText, label }) => {
    return CLT.responsive((width) => {
      const height = 300,
        bottom = 42,
        top = 16,
        left = 64,
        right = 20;
      const [x0, x1] = CLT.extent(
        points.map((p) => p.x),
        { pad: 0.12 },
      );
      const [y0, y1] = CLT.extent(
        points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]),
        { pad: 0.12 },
      );
      const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right),
        y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - bottom - top);
      const best = front(points, better);
      const root = svg("svg", {
        class: "chart",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${label}: ${points.map((p) => `${p.name} L0 ${CLT.num(p.x)}, ${yText(p.y)}`).join("; ")}`,
      });
      for (const v of CLT.ticks(y0, y1, 5))
        root.append(
          svg("line", { class: "gridline", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
          svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, yText(v)),
        );
      for (const v of CLT.ticks(x0, x1, Math.max(3, Math.floor(width / 120))))
        root.append(svg("text", { x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, CLT.num(v)));
      root.append(
        svg("line", { class: "axisline", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
        svg(
          "text",
          { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" },
          "L0: active features a token and layer",
        ),
        svg(
          "text",
          { transform: `translate(14 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" },
          yLabel,
        ),
      );
      const chain = points.filter((_, n) => best[n]).sort((a, b) => a.x - b.x);
      if (chain.length > 1)
        root.append(
          svg("polyline", {
            points: chain.map((p) => `${x(p.x)},${y(p.y)}`).join(" "),
            fill: "none",
            stroke: "var(--line-strong)",
            "stroke-dasharray": "4 4",
          }),
        );
      // labels of near points give way to one another
      const taken = [];
      points.forEach((p, n) => {
        const color = CLT.series(n);
        if (p.low !== null && p.low !== undefined)
          root.append(
            svg("line", { x1: x(p.x), x2: x(p.x), y1: y(p.low), y2: y(p.high), stroke: color, "stroke-width": 2 }),
            ...[p.low, p.high].map((v) =>
              svg("line", { x1: x(p.x) - 5, x2: x(p.x) + 5, y1: y(v), y2: y(v), stroke: color, "stroke-width": 2 }),
            ),
          );
        root.append(
          svg(
            "circle",
            {
              cx: x(p.x),
              cy: y(p.y),
              r: 6,
              fill: best[n] ? color : "var(--surface)",
              stroke: color,
              "stroke-width": 2,
            },
            svg("title", {}, `${p.name}: L0 ${CLT.num(p.x)}, ${yText(p.y)}`),
          ),
        );
        const rightwards = x(p.x) < width / 2;
        let at = y(p.y) - 10;
        while (taken.some((t) => Math.abs(t - at) < 14)) at += 14;
        taken.push(at);
        root.append(
          svg(
            "text",
            { class: "value", x: x(p.x) + (rightwards ? 11 : -11), y: at, "text-anchor": rightwards ? "start" : "end" },
            p.name,
          ),
        );
      });
      return [root];
    });
  };
})();
