// A picture enlarged, with the codes of its patches to read off.
(() => {
  "use strict";
  const { h } = CLT;
  const SIDE = 640;

  // shots: [{image, map, peak, caption}]; opens the one with number `start`; the arrow keys go through them
  CLT.enlarge = (sprites, grid, shots, start, mode = "squares") => {
    const opener = document.activeElement;
    const canvas = h("canvas", { width: SIDE, height: SIDE, role: "img" });
    const said = h("p", { class: "note", role: "status" });
    const title = h("h2", { id: "enlarged" });
    const links = h("p", { class: "row" });
    const dialog = h(
      "dialog",
      { class: "enlarged", "aria-labelledby": "enlarged" },
      h(
        "header",
        { class: "row between" },
        title,
        h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Close"),
      ),
      canvas,
      said,
      h(
        "div",
        { class: "row between" },
        h("button", { type: "button", class: "plain", onclick: () => turn(-1) }, "← previous"),
        links,
        h("button", { type: "button", class: "plain", onclick: () => turn(1) }, "next →"),
      ),
    );
    let number = start;
    let drawing = mode;
    let current = null;
    const [rows, columns] = grid;

    async function draw() {
      const mine = number;
      const { image, map, peak, caption } = shots[number];
      title.textContent = `${caption} · ${number + 1} of ${shots.length}`;
      canvas.setAttribute("aria-label", `${sprites.keys[image]}, ${caption}`);
      const href = CLT.imageHref(image);
      links.replaceChildren(
        h(
          "button",
          { type: "button", class: "plain", onclick: switchDrawing },
          drawing === "image" ? "with codes" : "without codes",
        ),
        ...(href ? [h("a", { href, onclick: () => dialog.close() }, "this image")] : []),
      );
      tell(null);
      const picture = await CLT.picture(sprites, image);
      if (mine !== number) return;
      const g = canvas.getContext("2d");
      g.clearRect(0, 0, SIDE, SIDE);
      g.imageSmoothingQuality = "high";
      if (picture) g.drawImage(picture.sheet, picture.x, picture.y, sprites.size, sprites.size, 0, 0, SIDE, SIDE);
      if (drawing !== "image") CLT.overlay(g, SIDE, map, peak, grid, drawing);
    }
    function tell(patch) {
      const { image, map } = shots[number];
      const at =
        patch === null
          ? ""
          : `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}: code ${CLT.num(map[patch + 1])}. `;
      said.textContent = `${at}[CLS] ${CLT.num(map[0])}. ${sprites.keys[image]}`;
    }
    function turn(step) {
      number = (number + step + shots.length) % shots.length;
      draw();
    }
    function switchDrawing() {
      drawing = drawing === "image" ? (mode === "image" ? "squares" : mode) : "image";
      draw();
    }
    const follow = (event) => {
      const r = canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - r.left) / r.width) * columns);
      const row = Math.floor(((event.clientY - r.top) / r.height) * rows);
      const patch = CLT.clamp(row, 0, rows - 1) * columns + CLT.clamp(column, 0, columns - 1);
      if (patch !== current) tell(patch);
      current = patch;
    };
    canvas.addEventListener("pointermove", follow);
    canvas.addEventListener("pointerdown", follow);
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        event.preventDefault();
        event.stopPropagation();
        turn(step);
      }
    });
    // a click beside it closes it
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    const leave = () => dialog.close();
    window.addEventListener("hashchange", leave);
    dialog.addEventListener("close", () => {
      window.removeEventListener("hashchange", leave);
      dialog.remove();
      if (opener?.isConnected) opener.focus();
    });
    document.body.append(dialog);
    dialog.showModal();
    draw();
  };
})();
