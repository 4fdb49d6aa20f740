// The images that have a page of their own: the model's mistakes first.
(() => {
  "use strict";
  const { h } = CLT;
  const SHOWN = 120;
  const SETS = [
    ["wrong", "mistakes"],
    ["lost", "lost by replacing"],
    ["full", "studied in full"],
    ["all", "all"],
  ];
  CLT.pages.images = async (_parts, query) => {
    const [list, sprites, { classnames }] = await Promise.all([
      CLT.load("images"),
      CLT.load("sprites"),
      CLT.load("report"),
    ]);
    const head = [
      h("h1", {}, "Images"),
      h(
        "p",
        { class: "lead" },
        "An image's page says why it is seen as this class and not as that one: the logits part by part, the features that decide, and what the model says without them.",
      ),
    ];
    if (!list?.image.length) return [head, CLT.missing("images", "No image was studied")];
    const full = new Set(list.full);
    const entries = list.image.map((image, n) => {
      const label = sprites.labels[image];
      const seen = list.predicted ? list.predicted[n] : null;
      const replaced = list.replaced ? list.replaced[n] : null;
      const wrong = seen !== null && label >= 0 && seen !== label;
      return {
        image,
        label,
        seen,
        replaced,
        wrong,
        lost: !wrong && label >= 0 && replaced !== null && replaced !== label,
      };
    });
    const inSet = { wrong: (e) => e.wrong, lost: (e) => e.lost, full: (e) => full.has(e.image), all: () => true };
    const count = Object.fromEntries(SETS.map(([k]) => [k, entries.filter(inSet[k]).length]));
    const state = {
      show: SETS.some(([k]) => k === query.show) ? query.show : count.wrong ? "wrong" : "full",
      text: query.text || "",
    };
    const name = (k) => (k >= 0 && k !== null ? classnames[k] : "");
    const box = h("div", { class: "stack" });
    let shown = SHOWN;
    const shot = (e) => {
      const told = e.seen === null ? "" : `${e.label < 0 ? "" : e.wrong ? "✗ " : "✓ "}seen as ${name(e.seen)}`;
      return h(
        "a",
        { class: "shot", href: CLT.href("image", [e.image]) },
        CLT.thumb(sprites, e.image, { mode: "image", alt: sprites.keys[e.image], link: false }),
        h(
          "span",
          { class: "said" },
          h("b", { class: "cut" }, name(e.label) || sprites.keys[e.image]),
          h("span", { class: "cut" }, told),
          state.show === "lost" ? h("span", { class: "cut" }, `replaced: ${name(e.replaced)}`) : null,
        ),
      );
    };
    function draw() {
      const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
      const found = entries.filter((e) => {
        const text = `${name(e.label)} ${name(e.seen)} ${sprites.keys[e.image]}`.toLowerCase();
        return inSet[state.show](e) && words.every((w) => text.includes(w));
      });
      if (state.show === "full") found.sort((a, b) => list.full.indexOf(a.image) - list.full.indexOf(b.image));
      CLT.imageOrder = found.map((e) => e.image);
      box.replaceChildren(
        h(
          "p",
          { class: "note", role: "status" },
          `${CLT.count(found.length)} of ${CLT.count(entries.length)} images with a page.`,
          list.without
            ? ` ${CLT.count(list.without)} more images of the split have none (option --pages of the report).`
            : "",
        ),
        h("div", { class: "shots big" }, found.slice(0, shown).map(shot)),
        found.length > shown
          ? h(
              "button",
              {
                type: "button",
                class: "plain",
                onclick: () => {
                  shown += 4 * SHOWN;
                  draw();
                },
              },
              `${CLT.count(found.length - shown)} more`,
            )
          : "",
      );
      CLT.remember("images", [], state);
    }
    const again = () => {
      shown = SHOWN;
      draw();
    };
    draw();
    const choices = SETS.filter(([k]) => count[k]).map(([k, text]) => [k, `${text} (${CLT.count(count[k])})`]);
    return [
      head,
      h(
        "div",
        { class: "tools" },
        CLT.segments("Which images", choices, state.show, (v) => {
          state.show = v;
          again();
        }),
        h("input", {
          type: "search",
          value: state.text,
          placeholder: "class or key",
          "aria-label": "Search by class or key",
          oninput: (e) => {
            state.text = e.target.value;
            again();
          },
        }),
      ),
      box,
    ];
  };
})();
