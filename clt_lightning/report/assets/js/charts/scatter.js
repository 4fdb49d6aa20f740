// Tens of thousands of points, in layers: the points (drawn when the choice changes), and over them what follows the
// pointer. Points that fall onto each other add up: the denser, the stronger.
(() => {
  "use strict";
  const { h } = CLT;
  const BUCKET = 12;
  const NEAR = 10; // pixels within which a point is under the pointer
  const PAD = { left: 58, right: 14, top: 10, bottom: 42 };

  // axes: {x, y}, each {values (NaN: not drawn), log, title, show}; inside: Uint8Array, 1 for points that are chosen
  // color(i): [r, g, b]; onbrush(box or null): {x0, x1, y0, y1} in the axes' units; redraw with `box.draw(axes, inside)`
  CLT.charts.scatter = ({ color, describe, onpick, onbrush, label, height = 300 }) => {
    const back = h("canvas", { role: "img", "aria-label": label });
    const front = h("canvas", { "aria-hidden": "true" });
    const tip = h("div", { class: "tip", hidden: true });
    const box = h("div", { class: "chartbox scatter", style: { height: `${height}px` } }, back, front, tip);
    let axes = null;
    let inside = null;
    let brush = null;
    let scale = null; // {x, y: from the axis' unit to pixels, and back}
    let px = null;
    let py = null;
    let buckets = null;
    let current = -1;

    const unit = (axis) => (axis.log ? (v) => (v > 0 ? Math.log10(v) : Number.NaN) : (v) => v);
    function axisScale(axis, from, to) {
      const u = unit(axis);
      let low = Infinity;
      let high = -Infinity;
      for (const value of axis.values) {
        const v = u(value);
        if (v < low) low = v;
        if (v > high) high = v;
      }
      if (low > high) [low, high] = [0, 1];
      const room = 0.04 * (high - low || 1);
      low -= room;
      high += room;
      const k = (to - from) / (high - low);
      const back10 = (p) => low + (p - from) / k;
      return {
        low,
        high,
        at: (value) => from + (u(value) - low) * k,
        tick: (v) => from + (v - low) * k,
        value: (p) => (axis.log ? 10 ** back10(p) : back10(p)),
        text: (v) => axis.show(axis.log ? 10 ** v : v),
      };
    }

    function size() {
      const ratio = window.devicePixelRatio || 1;
      const width = box.clientWidth;
      for (const canvas of [back, front]) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      return [width, ratio];
    }

    function draw() {
      if (!box.clientWidth || !axes) return;
      const [width, ratio] = size();
      scale = {
        x: axisScale(axes.x, PAD.left, width - PAD.right),
        y: axisScale(axes.y, height - PAD.bottom, PAD.top),
      };
      place(width);
      const g = back.getContext("2d");
      points(g, ratio);
      frame(g, width, ratio);
      over();
    }

    // where every point lies, and which of the chosen ones are near to each other
    function place(width) {
      const n = axes.x.values.length;
      px = new Float32Array(n);
      py = new Float32Array(n);
      const across = Math.ceil(width / BUCKET) + 1;
      const down = Math.ceil(height / BUCKET) + 1;
      const starts = new Int32Array(across * down + 1);
      const cell = (i) => Math.floor(py[i] / BUCKET) * across + Math.floor(px[i] / BUCKET);
      for (let i = 0; i < n; i++) {
        px[i] = scale.x.at(axes.x.values[i]);
        py[i] = scale.y.at(axes.y.values[i]);
        if (inside[i] && drawn(i)) starts[cell(i) + 1]++;
      }
      for (let b = 1; b < starts.length; b++) starts[b] += starts[b - 1];
      const items = new Int32Array(starts.at(-1));
      const next = starts.slice();
      for (let i = 0; i < n; i++) if (inside[i] && drawn(i)) items[next[cell(i)]++] = i;
      buckets = { across, down, starts, items };
    }
    const drawn = (i) => !Number.isNaN(px[i]) && !Number.isNaN(py[i]);

    // colours are added up in a field of pixels: 70,000 points in a few milliseconds, where drawing each takes long
    function points(g, ratio) {
      const { width, height: rows } = back;
      const n = px.length;
      const side = Math.max(2, Math.round((n > 20000 ? 1.8 : n > 4000 ? 3 : 4) * ratio));
      const image = g.createImageData(width, rows);
      const field = new Float32Array(width * rows * 4);
      for (const chosen of [0, 1]) {
        field.fill(0);
        for (let i = 0; i < n; i++) {
          if (inside[i] !== chosen || !drawn(i)) continue;
          const [red, green, blue] = color(i);
          const x0 = Math.round(px[i] * ratio - side / 2);
          const y0 = Math.round(py[i] * ratio - side / 2);
          for (let y = Math.max(0, y0); y < Math.min(rows, y0 + side); y++)
            for (let x = Math.max(0, x0); x < Math.min(width, x0 + side); x++) {
              const at = 4 * (y * width + x);
              field[at] += red;
              field[at + 1] += green;
              field[at + 2] += blue;
              field[at + 3]++;
            }
        }
        const dim = CLT.rgb("--line-strong");
        for (let at = 0; at < field.length; at += 4) {
          const count = field[at + 3];
          if (!count) continue;
          const alpha = chosen
            ? Math.min(1, 0.72 + 0.1 * Math.log2(count))
            : Math.min(0.75, 0.3 + 0.1 * Math.log2(count));
          for (let k = 0; k < 3; k++) image.data[at + k] = chosen ? field[at + k] / count : dim[k];
          image.data[at + 3] = 255 * alpha;
        }
      }
      g.putImageData(image, 0, 0);
    }

    function frame(g, width, ratio) {
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.globalCompositeOperation = "destination-over";
      g.font = `12px ${CLT.cssColor("--sans")}`;
      g.fillStyle = CLT.cssColor("--ink-2");
      g.strokeStyle = CLT.cssColor("--line");
      const ticks = (axis, wanted) =>
        CLT.ticks(axis.low, axis.high, wanted).filter((t) => t >= axis.low && t <= axis.high);
      for (const t of ticks(scale.y, 5)) {
        const y = scale.y.tick(t);
        g.beginPath();
        g.moveTo(PAD.left, y);
        g.lineTo(width - PAD.right, y);
        g.stroke();
        g.textAlign = "right";
        g.fillText(scale.y.text(t), PAD.left - 7, y + 4);
      }
      g.textAlign = "center";
      for (const t of ticks(scale.x, width < 500 ? 3 : 5))
        g.fillText(scale.x.text(t), scale.x.tick(t), height - PAD.bottom + 18);
      g.fillText(axes.x.title, (PAD.left + width - PAD.right) / 2, height - 6);
      g.save();
      g.translate(13, (PAD.top + height - PAD.bottom) / 2);
      g.rotate(-Math.PI / 2);
      g.fillText(axes.y.title, 0, 0);
      g.restore();
      g.globalCompositeOperation = "source-over";
    }

    // what follows the pointer: nothing else is drawn for it
    function over() {
      const ratio = window.devicePixelRatio || 1;
      const g = front.getContext("2d");
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.clearRect(0, 0, box.clientWidth, height);
      if (brush) {
        const [x0, x1] = [brush.x0, brush.x1].map((v) =>
          CLT.clamp(scale.x.at(v), PAD.left, box.clientWidth - PAD.right),
        );
        const [y0, y1] = [brush.y0, brush.y1].map((v) => CLT.clamp(scale.y.at(v), PAD.top, height - PAD.bottom));
        g.fillStyle = CLT.cssColor("--accent");
        g.strokeStyle = g.fillStyle;
        g.globalAlpha = 0.1;
        g.fillRect(x0, y1, x1 - x0, y0 - y1);
        g.globalAlpha = 1;
        g.strokeRect(x0 + 0.5, y1 + 0.5, x1 - x0, y0 - y1);
      }
      tip.hidden = current < 0;
      if (current < 0) return;
      g.strokeStyle = CLT.cssColor("--ink");
      g.lineWidth = 1.5;
      g.beginPath();
      g.arc(px[current], py[current], 6, 0, 7);
      g.stroke();
      tip.textContent = describe(current);
      const flip = px[current] > box.clientWidth * 0.6;
      tip.style.left = flip ? "auto" : `${px[current] + 12}px`;
      tip.style.right = flip ? `${box.clientWidth - px[current] + 12}px` : "auto";
      tip.style.top = `${Math.max(0, py[current] - 20)}px`;
    }

    function find([mx, my]) {
      if (!buckets) return -1;
      const { across, down, starts, items } = buckets;
      let best = -1;
      let least = NEAR * NEAR;
      const bx = Math.floor(mx / BUCKET);
      const by = Math.floor(my / BUCKET);
      for (let y = Math.max(0, by - 1); y <= Math.min(down - 1, by + 1); y++)
        for (let x = Math.max(0, bx - 1); x <= Math.min(across - 1, bx + 1); x++)
          for (let k = starts[y * across + x]; k < starts[y * across + x + 1]; k++) {
            const i = items[k];
            const d = (px[i] - mx) ** 2 + (py[i] - my) ** 2;
            if (d < least) {
              least = d;
              best = i;
            }
          }
      return best;
    }
    const at = (event) => {
      const r = front.getBoundingClientRect();
      return [event.clientX - r.left, event.clientY - r.top];
    };
    const hover = (i) => {
      if (i === current) return;
      current = i;
      over();
    };

    // a drag draws a box, a click (or a second tap) opens what is under the pointer
    let from = null;
    let dragged = false;
    front.addEventListener("pointerdown", (event) => {
      from = at(event);
      dragged = false;
      if (event.pointerType !== "mouse") hover(find(from));
      else front.setPointerCapture(event.pointerId);
    });
    front.addEventListener("pointermove", (event) => {
      const to = at(event);
      if (!from || (event.pointerType === "mouse" && !event.buttons)) {
        hover(find(to));
        return;
      }
      if (Math.hypot(to[0] - from[0], to[1] - from[1]) > 5) dragged = true;
      if (!dragged) return;
      current = -1;
      const xs = [from[0], to[0]].map((p) => scale.x.value(p)).sort((a, b) => a - b);
      const ys = [from[1], to[1]].map((p) => scale.y.value(p)).sort((a, b) => a - b);
      brush = { x0: xs[0], x1: xs[1], y0: ys[0], y1: ys[1] };
      over();
    });
    front.addEventListener("pointerup", (event) => {
      const known = current;
      if (from && dragged) onbrush(brush);
      else if (event.pointerType === "mouse") {
        const i = find(at(event));
        if (i >= 0) onpick(i);
      } else if (known >= 0 && known === box.tapped) onpick(known);
      box.tapped = known;
      from = null;
    });
    front.addEventListener("pointercancel", () => {
      from = null;
    });
    front.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !from) hover(-1);
    });
    new ResizeObserver(draw).observe(box);
    box.redraw = draw;
    box.draw = (newAxes, newInside, newBrush) => {
      [axes, inside, brush, current] = [newAxes, newInside, newBrush, -1];
      draw();
    };
    return box;
  };
})();
