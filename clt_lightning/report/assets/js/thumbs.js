// Thumbnails out of sprite sheets, with the codes of a feature drawn over their patches.
(() => {
  "use strict";
  const { h } = CLT;
  const sheets = new Map();
  const SHEETS_KEPT = 48;
  const PATIENCE = 40; // times, every 250 ms
  CLT.sheet = (url) => {
    if (sheets.has(url)) {
      const known = sheets.get(url);
      sheets.delete(url);
      sheets.set(url, known);
      return known;
    }
    const image = new Image();
    image.src = url;
    // decoded beside the page's own work: drawing it then takes no time
    const promise = image.decode().then(
      () => image,
      () => Promise.reject(new Error(`${url} cannot be read`)),
    );
    sheets.set(url, promise);
    while (sheets.size > SHEETS_KEPT) sheets.delete(sheets.keys().next().value);
    return promise;
  };
  const place = (sprites, image) => {
    const cell = sprites.cell[image];
    if (cell === undefined || cell < 0) return null;
    const per = sprites.columns * sprites.rows,
      inside = cell % per;
    return {
      url: `thumbs/${String(Math.floor(cell / per)).padStart(4, "0")}.webp`,
      x: (inside % sprites.columns) * sprites.size,
      y: Math.floor(inside / sprites.columns) * sprites.size,
    };
  };
  // where an image has its page; null where it has none
  CLT.imageHref = (image) => (CLT.get("sprites")?.page[image] === "1" ? CLT.href("image", [image]) : null);

  // what comes near the screen is read first, the rest of the page when there is time: it may be printed
  const waiting = new Set();
  const paint = (box) => {
    near.unobserve(box);
    waiting.delete(box);
    return box.isConnected ? box.paint() : null;
  };
  const near = new IntersectionObserver(
    (entries) => {
      for (const e of entries) if (e.isIntersecting) paint(e.target);
    },
    { rootMargin: "300px" },
  );
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 200));
  let asked = false;
  function later() {
    if (asked || !waiting.size) return;
    asked = true;
    idle(async () => {
      // what is not in the page yet is asked for again, a while
      const next = [...waiting].filter((box) => box.isConnected).slice(0, 8);
      await Promise.all(next.map(paint));
      asked = false;
      if (next.length) return later();
      for (const box of waiting) {
        box.asked = (box.asked ?? 0) + 1;
        if (box.asked > PATIENCE) waiting.delete(box);
      }
      return setTimeout(later, 250);
    });
  }
  addEventListener("beforeprint", () => {
    for (const box of [...waiting]) paint(box);
  });

  // {sheet, x, y} of an image's thumbnail; null where there is none
  CLT.picture = async (sprites, image) => {
    const at = place(sprites, image);
    return at && { sheet: await CLT.sheet(at.url), x: at.x, y: at.y };
  };
  // map: codes of all positions ([CLS] first), peak: what the top of the colour scale stands for
  // mode: squares (colour over the active patches), reveal (the other patches darkened), image (nothing drawn)
  // crop: a patch index: only its surroundings are shown
  // link: whether it leads to the image's page; not inside of other links
  CLT.thumb = (sprites, image, { map, peak, grid, mode = "squares", crop, alt, link = true } = {}) => {
    const href = link ? CLT.imageHref(image) : null;
    // alt: "" for a picture beside a text that says it all
    const named = alt === "" ? { "aria-hidden": "true" } : { role: "img", "aria-label": alt || `image ${image}` };
    const canvas = h("canvas", named);
    const box = h(href ? "a" : "span", { class: "thumb loading", href }, canvas);
    if (link && !href) box.title = "This image has no page of its own (option --pages of the report).";
    const at = place(sprites, image);
    box.paint = async () => {
      if (!at) {
        box.classList.remove("loading");
        return;
      }
      let sheet;
      try {
        sheet = await CLT.sheet(at.url);
      } catch (error) {
        box.title = error.message;
        return;
      }
      const size = sprites.size;
      let [sx, sy, side] = [0, 0, size];
      if (crop !== undefined && crop >= 0) {
        const [rows, columns] = grid,
          patch = size / columns,
          wanted = Math.max(3 * patch, size / 3.5);
        side = wanted;
        sx = CLT.clamp(((crop % columns) + 0.5) * patch - wanted / 2, 0, size - wanted);
        sy = CLT.clamp((Math.floor(crop / columns) + 0.5) * (size / rows) - wanted / 2, 0, size - wanted);
      }
      const shown = Math.max(size, 128);
      canvas.width = canvas.height = shown;
      const g = canvas.getContext("2d");
      g.imageSmoothingQuality = "high";
      g.drawImage(sheet, at.x + sx, at.y + sy, side, side, 0, 0, shown, shown);
      if (map && mode !== "image") overlay(g, shown, map, peak, grid, mode, [sx / size, sy / size, side / size]);
      box.classList.remove("loading");
    };
    near.observe(box);
    waiting.add(box);
    later();
    return box;
  };

  // draws codes over a square of `shown` pixels; the last argument: which part of the image the square shows
  CLT.overlay = overlay;
  function overlay(g, shown, map, peak, [rows, columns], mode, [ox, oy, part] = [0, 0, 1]) {
    const zoom = shown / part,
      w = zoom / columns,
      hgt = zoom / rows;
    for (let p = 0; p < rows * columns; p++) {
      const t = Math.abs(map[p + 1]) / peak;
      const x = (p % columns) * w - ox * zoom,
        y = Math.floor(p / columns) * hgt - oy * zoom;
      if (mode === "reveal") {
        g.fillStyle = `rgb(8 8 12 / ${0.86 * (1 - Math.min(1, t * 1.6))})`;
        g.fillRect(x, y, w, hgt);
      } else if (t > 0) {
        const [r, gr, b] = CLT.fire(0.25 + 0.75 * t);
        g.fillStyle = `rgb(${r} ${gr} ${b} / ${0.28 + 0.4 * t})`;
        g.fillRect(x, y, w, hgt);
        g.strokeStyle = `rgb(${r} ${gr} ${b} / .95)`;
        g.lineWidth = Math.max(1, shown / 110);
        g.strokeRect(x + g.lineWidth / 2, y + g.lineWidth / 2, w - g.lineWidth, hgt - g.lineWidth);
      }
    }
  }
  CLT.strongestPatch = (map) => {
    let best = -1,
      value = 0;
    for (let p = 1; p < map.length; p++)
      if (Math.abs(map[p]) > value) {
        value = Math.abs(map[p]);
        best = p - 1;
      }
    return best;
  };
  CLT.scaleFire = (peak) =>
    h("div", { class: "scale" }, "0", h("i", { style: { background: CLT.fireBar() } }), `code ${CLT.num(peak)}`);
})();
