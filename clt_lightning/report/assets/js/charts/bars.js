// Horizontal bars to both sides of zero, with their values written beside them.
(() => {
  "use strict";
  const { svg } = CLT;
  // items: [{name, value, color?, text?, strong?, low?, high?}]; low and high: an interval, drawn over the bar
  CLT.charts.bars = ({ items, show = (v) => CLT.num(v), label, rowHeight = 22, nameWidth = 118 }) =>
    CLT.responsive((width) => {
      const room = 12 + 6.8 * Math.max(4, ...items.map((i) => (i.text ?? show(i.value)).length));
      const values = items.flatMap((i) => [i.value ?? 0, i.low ?? 0, i.high ?? 0]);
      const low = Math.min(0, ...values);
      const high = Math.max(0, ...values) || (low < 0 ? 0 : 1);
      const names = Math.min(nameWidth, width * 0.45);
      const left = names + (low < 0 ? room : 6);
      const right = high > 0 ? room : 6;
      const height = items.length * rowHeight + 4;
      const x = (v) => left + ((v - low) / (high - low || 1)) * Math.max(8, width - left - right);
      const root = svg("svg", {
        class: "chart",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${label}: ${items.map((i) => `${i.name} ${show(i.value)}`).join(", ")}`,
      });
      root.append(svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: height }));
      items.forEach((item, i) => {
        const v = item.value ?? 0;
        const y = i * rowHeight + 2;
        const negative = v < 0;
        const middle = y + rowHeight / 2 - 0.5;
        const end = negative ? Math.min(v, item.low ?? v) : Math.max(v, item.high ?? v);
        root.append(
          svg(
            "text",
            { x: names - 6, y: middle + 4, "text-anchor": "end", class: item.strong ? "strong" : null },
            item.name,
          ),
          svg(
            "rect",
            {
              x: Math.min(x(0), x(v)),
              y: y + 3,
              width: Math.max(Math.abs(x(v) - x(0)), 0.5),
              height: rowHeight - 7,
              rx: 2,
              fill: item.color || (negative ? "var(--s1)" : "var(--s0)"),
            },
            svg("title", {}, `${item.name}: ${show(item.value)}`),
          ),
          item.low === undefined
            ? ""
            : svg("line", {
                x1: x(item.low),
                x2: x(item.high),
                y1: middle,
                y2: middle,
                stroke: "var(--ink)",
                "stroke-width": 1.5,
              }),
          svg(
            "text",
            {
              class: "value",
              x: x(end) + (negative ? -5 : 5),
              y: middle + 4,
              "text-anchor": negative ? "end" : "start",
            },
            item.text ?? show(item.value),
          ),
        );
      });
      return [root];
    });
})();
