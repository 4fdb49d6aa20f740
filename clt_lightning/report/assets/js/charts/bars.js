// Horizontal bars to both sides of zero, with their values written beside them.
(() => {
  "use strict";
  const { svg } = CLT;
  // items: [{name, value, color?, text?}]
  CLT.charts.bars = ({ items, show = (v) => CLT.num(v), label, rowHeight = 22, nameWidth = 118 }) =>
    CLT.responsive((width) => {
      const values = items.map((i) => i.value ?? 0),
        low = Math.min(0, ...values),
        high = Math.max(0, ...values) || 1;
      const room = 64,
        left = nameWidth + (low < 0 ? room : 6),
        right = high > 0 ? room : 6,
        height = items.length * rowHeight + 4;
      const span = high - low || 1,
        x = (v) => left + ((v - low) / span) * (width - left - right);
      const root = svg("svg", {
        class: "chart",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${label}: ${items.map((i) => `${i.name} ${show(i.value)}`).join(", ")}`,
      });
      root.append(svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: height }));
      items.forEach((item, i) => {
        const v = item.value ?? 0,
          y = i * rowHeight + 2,
          negative = v < 0;
        root.append(
          svg("text", { x: nameWidth - 6, y: y + rowHeight / 2 + 3, "text-anchor": "end" }, item.name),
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
          svg(
            "text",
            {
              class: "value",
              x: x(v) + (negative ? -5 : 5),
              y: y + rowHeight / 2 + 3,
              "text-anchor": negative ? "end" : "start",
            },
            item.text ?? show(item.value),
          ),
        );
      });
      return [root];
    });
})();
