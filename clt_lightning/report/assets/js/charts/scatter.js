// Tens of thousands of points on a canvas; a grid of buckets finds the one under the pointer.
(() => {
  "use strict";
  const { h } = CLT;
  const BUCKET = 12;
  // x, y: arrays with NaN for points that are not drawn; color(i); bright(i): drawn in colour, else in the background
  CLT.charts.scatter = ({
    x,
    y,
    color,
    bright,
    xLabel,
    yLabel,
    xText,
    yText,
    describe,
    onpick,
    label,
    height = 320,
  }) => {
    const canvas = h("canvas", { class: "scatter", role: "img", "aria-label": label });
    const tip = h("div", { class: "tip", hidden: true });
    const box = h("div", { class: "chartbox" }, canvas, tip);
    const pad = { left: 58, right: 12, top: 10, bottom: 42 };
    let buckets = new Map(),
      px = null,
      py = null,
      domains = null,
      current = -1;
    function extent(values) {
      let low = Infinity,
        high = -Infinity;
      for (let i = 0; i < values.length; i++) {
        const v = values[i];
        if (!Number.isNaN(v)) {
          if (v < low) low = v;
          if (v > high) high = v;
        }
      }
      if (low > high) return [0, 1];
      const room = 0.04 * (high - low || 1);
      return [low - room, high + room];
    }
    function draw() {
      const width = box.clientWidth;
      if (!width) return;
      domains ||= [extent(x), extent(y)];
      const ratio = window.devicePixelRatio || 1,
        g = canvas.getContext("2d"),
        n = x.length;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      canvas.style.height = `${height}px`;
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      const sx = (v) =>
        pad.left + ((v - domains[0][0]) / (domains[0][1] - domains[0][0])) * (width - pad.left - pad.right);
      const sy = (v) =>
        height - pad.bottom - ((v - domains[1][0]) / (domains[1][1] - domains[1][0])) * (height - pad.top - pad.bottom);
      g.font = `12px ${CLT.cssColor("--sans")}`;
      g.fillStyle = CLT.cssColor("--ink-2");
      g.strokeStyle = CLT.cssColor("--line");
      for (const t of CLT.ticks(domains[1][0], domains[1][1])) {
        g.beginPath();
        g.moveTo(pad.left, sy(t));
        g.lineTo(width - pad.right, sy(t));
        g.stroke();
        g.textAlign = "right";
        g.fillText(yText(t), pad.left - 7, sy(t) + 4);
      }
      for (const t of CLT.ticks(domains[0][0], domains[0][1], width < 500 ? 4 : 7)) {
        g.textAlign = "center";
        g.fillText(xText(t), sx(t), height - pad.bottom + 18);
      }
      g.textAlign = "center";
      g.fillText(xLabel, (pad.left + width - pad.right) / 2, height - 6);
      g.save();
      g.translate(13, (pad.top + height - pad.bottom) / 2);
      g.rotate(-Math.PI / 2);
      g.fillText(yLabel, 0, 0);
      g.restore();
      px = new Float32Array(n);
      py = new Float32Array(n);
      buckets = new Map();
      const size = n > 20000 ? 1.8 : n > 4000 ? 2.4 : 3.2,
        dim = CLT.cssColor("--line-strong");
      for (const pass of [false, true]) {
        g.globalAlpha = pass ? 0.75 : 0.35;
        for (let i = 0; i < n; i++) {
          if (Number.isNaN(x[i]) || Number.isNaN(y[i]) || bright(i) !== pass) continue;
          px[i] = sx(x[i]);
          py[i] = sy(y[i]);
          g.fillStyle = pass ? color(i) : dim;
          g.fillRect(px[i] - size / 2, py[i] - size / 2, size, size);
          if (pass) {
            const key = ((px[i] / BUCKET) | 0) + 4096 * ((py[i] / BUCKET) | 0);
            if (buckets.has(key)) buckets.get(key).push(i);
            else buckets.set(key, [i]);
          }
        }
      }
      g.globalAlpha = 1;
      if (current >= 0) {
        g.strokeStyle = CLT.cssColor("--ink");
        g.lineWidth = 1.5;
        g.beginPath();
        g.arc(px[current], py[current], 6, 0, 7);
        g.stroke();
      }
    }
    function find(event) {
      const r = canvas.getBoundingClientRect(),
        mx = event.clientX - r.left,
        my = event.clientY - r.top;
      let best = -1,
        least = 100;
      for (let dx = -1; dx <= 1; dx++)
        for (let dy = -1; dy <= 1; dy++)
          for (const i of buckets.get(((mx / BUCKET) | 0) + dx + 4096 * (((my / BUCKET) | 0) + dy)) || []) {
            const d = (px[i] - mx) ** 2 + (py[i] - my) ** 2;
            if (d < least) {
              least = d;
              best = i;
            }
          }
      return best;
    }
    canvas.addEventListener("pointermove", (event) => {
      const i = find(event);
      if (i === current) return;
      current = i;
      draw();
      tip.hidden = i < 0;
      if (i >= 0) {
        tip.textContent = describe(i);
        const flip = px[i] > box.clientWidth * 0.6;
        tip.style.left = flip ? "auto" : `${px[i] + 12}px`;
        tip.style.right = flip ? `${box.clientWidth - px[i] + 12}px` : "auto";
        tip.style.top = `${Math.max(0, py[i] - 20)}px`;
      }
    });
    canvas.addEventListener("pointerleave", () => {
      current = -1;
      tip.hidden = true;
      draw();
    });
    canvas.addEventListener("click", (event) => {
      const i = find(event);
      if (i >= 0) onpick(i);
    });
    new ResizeObserver(draw).observe(box);
    CLT.onTheme(box, draw);
    box.redraw = draw;
    return box;
  };
  // calls `draw` on a change of theme for as long as the node is in the page
  CLT.onTheme = (node, draw) => {
    const listen = () => (node.isConnected ? draw() : window.removeEventListener("themechange", listen));
    setTimeout(() => window.addEventListener("themechange", listen));
  };
})();
