// The picture, with a map of codes over its patches; each patch can be picked by mouse, finger and keyboard.
(() => {
  "use strict";
  const { h } = CLT;
  const SIDE = 336;

  // onpick(position): 0 is [CLS], then the patches; null: none
  CLT.picturePicker = (source, [rows, columns], name, onpick) => {
    const overlay = h("canvas", { class: "overlay", "aria-hidden": "true", width: SIDE, height: SIDE });
    const grid = h("div", { class: "patches", role: "group", "aria-label": "Patches: arrow keys move, Enter picks" });
    grid.style.setProperty("--columns", columns);
    const said = (p) => `patch in row ${Math.floor(p / columns) + 1}, column ${(p % columns) + 1}`;
    const buttons = Array.from({ length: rows * columns }, (_, p) =>
      h("button", {
        type: "button",
        tabindex: p ? -1 : 0,
        "aria-label": said(p),
        "aria-pressed": "false",
        onclick: () => pick(picked === p + 1 ? null : p + 1),
      }),
    );
    grid.append(...buttons);
    const cls = h(
      "button",
      { type: "button", class: "plain small", "aria-pressed": "false", onclick: () => pick(picked === 0 ? null : 0) },
      "[CLS]",
    );
    let picked = null;
    function pick(position) {
      picked = position;
      buttons.forEach((b, p) => {
        b.setAttribute("aria-pressed", String(position === p + 1));
      });
      cls.setAttribute("aria-pressed", String(position === 0));
      onpick(position);
    }
    grid.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      const from = buttons.indexOf(document.activeElement);
      if (!step || from < 0) return;
      event.preventDefault();
      const to = from + step;
      if (to < 0 || to >= buttons.length) return;
      buttons[from].tabIndex = -1;
      buttons[to].tabIndex = 0;
      buttons[to].focus();
    });

    // map: codes of all positions; null: nothing is drawn
    function paint(map) {
      const g = overlay.getContext("2d");
      g.clearRect(0, 0, SIDE, SIDE);
      if (!map) return;
      let peak = 0;
      for (const v of map) peak = Math.max(peak, Math.abs(v));
      const w = SIDE / columns;
      const tall = SIDE / rows;
      for (let p = 0; p < rows * columns; p++) {
        const t = Math.abs(map[p + 1]) / (peak || 1);
        if (!t) continue;
        const color = CLT.fire(0.25 + 0.75 * t).join(" ");
        const [x, y] = [(p % columns) * w, Math.floor(p / columns) * tall];
        g.fillStyle = `rgb(${color} / ${0.25 + 0.4 * t})`;
        g.strokeStyle = `rgb(${color})`;
        g.lineWidth = 2;
        g.fillRect(x, y, w, tall);
        g.strokeRect(x + 1, y + 1, w - 2, tall - 2);
      }
    }
    const box = h("div", { class: "picture" }, h("img", { src: source, alt: name }), overlay, grid);
    return { box, cls, paint, pick, said, picked: () => picked };
  };
})();
