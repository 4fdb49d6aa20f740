// Cards of features in a box that scrolls: only the rows on the screen exist.
(() => {
  "use strict";
  const { h } = CLT;
  const HEIGHT = 156;
  const WIDTH = 208;
  const GAP = 12;
  const AHEAD = 2;

  // a bar to both sides of zero; `largest`: what half its width stands for
  CLT.effectBar = (value, largest) => {
    const share = CLT.clamp(Math.abs(value) / largest, 0, 1) * 50;
    return h(
      "span",
      { class: "effect-bar", "aria-hidden": "true" },
      h("i", {
        class: value < 0 ? "down" : "up",
        style: { width: `${share}%`, [value < 0 ? "right" : "left"]: "50%" },
      }),
    );
  };
  // what the bars of a catalogue are drawn against: the 98th percentile, so that one feature does not flatten all
  CLT.largestEffect = (c) => {
    if (!c.effect) return 1;
    c.largest ||=
      CLT.quantile(
        Float32Array.from(c.effect, Math.abs).filter((v) => !Number.isNaN(v)),
        0.98,
      ) || 1;
    return c.largest;
  };

  // one feature: four crops, name, effect
  CLT.featureTile = (c, sprites, i) => {
    const shots = h("span", { class: "crops" });
    CLT.crops(c, i).then((crops) => {
      shots.append(...crops.map((crop) => CLT.cropThumb(c, sprites, crop)));
    });
    const effect = c.effect ? c.effect[i] : Number.NaN;
    return h(
      "a",
      { class: "tile-feature", href: c.href(i) },
      shots,
      h("span", { class: "row tight" }, h("b", {}, c.id(i)), CLT.namePill(c, i)),
      CLT.conflictBadge(c, i),
      Number.isNaN(effect)
        ? null
        : h(
            "span",
            {
              class: "row tight effect",
              title: "Mean total effect on the predicted class's logit, where it is active",
            },
            CLT.effectBar(effect, CLT.largestEffect(c)),
            h("span", {}, h("span", { class: "sr" }, "effect "), `${effect > 0 ? "+" : ""}${CLT.num(effect, 2)}`),
          ),
    );
  };

  CLT.gallery = (c, sprites, { label }) => {
    const space = h("div", { class: "gspace" });
    const box = h(
      "div",
      { class: "gallery", tabindex: 0, role: "region", "aria-label": label, "data-scroll": "gallery" },
      space,
    );
    let order = [];
    let drawn = "";
    function draw() {
      const width = space.clientWidth;
      if (!width) return;
      const columns = Math.max(1, Math.floor((width + GAP) / (WIDTH + GAP)));
      const cell = (width - (columns - 1) * GAP) / columns;
      const step = HEIGHT + GAP;
      space.style.height = `${Math.ceil(order.length / columns) * step}px`;
      const top = Math.max(0, Math.floor(box.scrollTop / step) - AHEAD);
      const end = Math.ceil((box.scrollTop + box.clientHeight) / step) + AHEAD;
      const key = `${columns} ${Math.round(cell)} ${top} ${end}`;
      if (key === drawn) return;
      drawn = key;
      const kept = new Map([...space.children].map((node) => [node.dataset.n, node]));
      const next = [];
      for (let n = top * columns; n < Math.min(order.length, end * columns); n++) {
        const name = `${n}:${order[n]}`;
        const node = kept.get(name) || CLT.featureTile(c, sprites, order[n]);
        node.dataset.n = name;
        node.style.cssText = `left:${(n % columns) * (cell + GAP)}px;top:${Math.floor(n / columns) * step}px;width:${cell}px;height:${HEIGHT}px`;
        next.push(node);
      }
      if (next.length !== space.children.length || next.some((node, n) => space.children[n] !== node))
        space.replaceChildren(...next);
    }
    box.addEventListener("scroll", draw, { passive: true });
    new ResizeObserver(draw).observe(box);
    box.show = (list) => {
      order = list;
      drawn = "";
      box.scrollTop = 0;
      draw();
    };
    return box;
  };
})();
