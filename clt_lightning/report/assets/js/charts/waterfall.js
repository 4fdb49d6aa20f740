// Bars one after another, each from where the last one ended: what adds up to a number.
(() => {
  "use strict";
  const { svg } = CLT;
  // items: [{name, value, color, group?}]; a line under each group; the last bar is their sum
  CLT.charts.waterfall = ({ items, total, show = (v) => CLT.fixed(v, 2), label, rowHeight = 21, nameWidth = 104 }) =>
    CLT.responsive((width) => {
      let sum = 0;
      const bars = items.map((item) => {
        const from = sum;
        sum += item.value;
        return { ...item, from, to: sum };
      });
      bars.push({ name: total, value: sum, from: 0, to: sum, color: "var(--ink-2)", sum: true });
      const low = Math.min(0, ...bars.map((b) => Math.min(b.from, b.to)));
      const high = Math.max(0, ...bars.map((b) => Math.max(b.from, b.to)));
      const room = 58;
      const left = nameWidth + (low < 0 ? room : 8);
      const x = (v) => left + ((v - low) / (high - low || 1)) * (width - left - room);
      const height = bars.length * rowHeight + 10;
      const said = bars.map((b) => `${b.name} ${show(b.value)}`).join(", ");
      const root = svg("svg", {
        class: "chart waterfall",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${label}: ${said}`,
      });
      bars.forEach((b, i) => {
        const y = i * rowHeight + (b.sum ? 8 : 2);
        const middle = y + rowHeight / 2;
        const [start, end] = [Math.min(b.from, b.to), Math.max(b.from, b.to)];
        if (b.sum || (i && b.group !== bars[i - 1].group))
          root.append(svg("line", { class: b.sum ? "axisline" : "gridline", x1: 0, x2: width, y1: y - 2, y2: y - 2 }));
        // the value stands where the bar grew to, or on the other side where there is no room
        const outside = b.value < 0 && x(start) > nameWidth + room - 8;
        root.append(
          svg(
            "text",
            { x: nameWidth - 6, y: middle + 4, "text-anchor": "end", class: b.sum ? "value strong" : null },
            b.name,
          ),
          svg(
            "rect",
            {
              x: x(start),
              y: y + 3,
              width: Math.max(1, x(end) - x(start)),
              height: rowHeight - 7,
              rx: 1.5,
              fill: b.color,
              opacity: b.value < 0 && !b.sum ? 0.62 : 1,
            },
            svg("title", {}, `${b.name}: ${show(b.value)}`),
          ),
          svg(
            "text",
            {
              class: b.sum ? "value strong" : "value",
              x: outside ? x(start) - 5 : x(end) + 5,
              y: middle + 4,
              "text-anchor": outside ? "end" : "start",
            },
            `${b.value > 0 && !b.sum ? "+" : ""}${show(b.value)}`,
          ),
        );
        if (i < bars.length - 2)
          root.append(
            svg("line", { class: "cursor", x1: x(b.to), x2: x(b.to), y1: y + rowHeight - 4, y2: y + rowHeight + 3 }),
          );
      });
      root.append(svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: height }));
      return [root];
    });
})();
