// Ticks, and the frame that line charts and bar charts share.
(() => {
  "use strict";
  const { svg } = CLT;
  CLT.ticks = (low, high, wanted = 5) => {
    if (!(high > low)) return [low];
    const rough = (high - low) / wanted,
      power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const out = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step)
      out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return out;
  };
  // a nice interval around the values
  CLT.extent = (values, { zero = false, pad = 0.05 } = {}) => {
    const finite = values.filter((v) => Number.isFinite(v));
    if (!finite.length) return [0, 1];
    let low = Math.min(...finite),
      high = Math.max(...finite);
    if (zero) {
      low = Math.min(low, 0);
      high = Math.max(high, 0);
    }
    if (low === high) {
      low -= Math.abs(low) * 0.1 || 0.5;
      high += Math.abs(high) * 0.1 || 0.5;
    }
    const room = pad * (high - low);
    return [zero && low === 0 ? 0 : low - room, zero && high === 0 ? 0 : high + room];
  };
  // a box that draws its content anew for every width: text keeps its size on a phone
  CLT.responsive = (draw) => {
    const box = CLT.h("div", { class: "chartbox" });
    let drawn = 0;
    new ResizeObserver(() => {
      const width = Math.round(box.clientWidth);
      if (width && width !== drawn) {
        drawn = width;
        box.replaceChildren(...draw(width));
      }
    }).observe(box);
    return box;
  };
  CLT.charts.frame = ({
    width,
    height,
    left,
    right = 14,
    top = 10,
    bottom = 40,
    xs,
    ys,
    xLabel,
    yLabel,
    xText,
    yText,
    label,
  }) => {
    left ??= 14 + (yLabel ? 16 : 0) + 7 * Math.max(2, ...ys.ticks.map((t) => yText(t).length));
    const x = (v) => left + ((v - xs.domain[0]) / (xs.domain[1] - xs.domain[0])) * (width - left - right);
    const y = (v) => height - bottom - ((v - ys.domain[0]) / (ys.domain[1] - ys.domain[0])) * (height - top - bottom);
    const root = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (const t of ys.ticks)
      root.append(
        svg("line", { class: "gridline", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
        svg("text", { x: left - 7, y: y(t) + 4, "text-anchor": "end" }, yText(t)),
      );
    for (const t of xs.ticks)
      root.append(svg("text", { x: x(t), y: height - bottom + 18, "text-anchor": "middle" }, xText(t)));
    root.append(
      svg("line", { class: "axisline", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    );
    if (xLabel)
      root.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
    if (yLabel)
      root.append(
        svg(
          "text",
          { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" },
          yLabel,
        ),
      );
    return { root, x, y, left, right, top, bottom, width, height };
  };
})();
