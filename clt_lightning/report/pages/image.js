// One image: its strongest features a layer, and its class logit term by term.
(() => {
  "use strict";
  const { h } = CLT;
  const item = (name, value, color) => ({ name, value, color });
  const sum = (list) => list.reduce((a, b) => a + b, 0);

  function decomposition(d, layers, which) {
    const features = layers.map((l) => sum(d.features[l])),
      items = [
        item("embedding", d.embedding, "var(--s5)"),
        ...layers.map((l) => item(`attention ${l}`, d.attention[l], "var(--s4)")),
        ...layers.map((l) => item(`features ${l}`, features[l], "var(--s0)")),
        item("decoder bias", sum(d.bias), "var(--s3)"),
      ];
    if (d.skip.some((v) => v !== 0)) items.push(item("linear skip", sum(d.skip), "var(--s2)"));
    if (which === "original") items.push(...layers.map((l) => item(`error ${l}`, d.error[l], "var(--s1)")));
    items.push(item("norm bias", d.norm_bias, "var(--s5)"));
    const left = d.logit - d.sum;
    return CLT.figure({
      title: which === "original" ? "The untouched CLIP's logit" : "The replaced CLIP's logit",
      note:
        which === "original"
          ? "Each MLP output is split into features, bias and the error that the transcoder leaves."
          : "All MLPs replaced, cascaded: no error term is left, because nothing else writes.",
      body: h(
        "div",
        {},
        CLT.charts.bars({
          items,
          show: (v) => CLT.fixed(v, 2),
          label: "Terms of the logit",
          nameWidth: 92,
          rowHeight: 20,
        }),
        h(
          "table",
          { class: "plain", style: { "margin-top": "8px" } },
          h(
            "tbody",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "row" }, "sum of the terms"),
              h("td", { class: "terms-sum" }, CLT.fixed(d.sum, 4)),
            ),
            h("tr", {}, h("th", { scope: "row" }, "logit"), h("td", { class: "terms-logit" }, CLT.fixed(d.logit, 4))),
            h(
              "tr",
              {},
              h("th", { scope: "row" }, "left unexplained"),
              h("td", {}, left === 0 ? "0" : left.toExponential(1).replace("-", "−")),
            ),
            which === "original"
              ? h(
                  "tr",
                  {},
                  h("th", { scope: "row" }, "of it the transcoder's error"),
                  h("td", {}, CLT.fixed(sum(d.error), 3)),
                )
              : null,
          ),
        ),
      ),
      numbers: CLT.table(
        [{ name: "from layer", text: true }, ...layers.map((l) => `to ${l}`)],
        layers.map((i) => [`features ${i}`, ...layers.map((j) => (j < i ? "" : CLT.fixed(d.features[i][j], 3)))]),
        { sortable: false },
      ),
    });
  }

  CLT.pages.image = async ([number]) => {
    const list = await CLT.load("images"),
      n = CLT.whole(number);
    if (!list?.[n]) throw new CLT.Nowhere(`There is no image “${number ?? ""}” in this report.`);
    const [e, sprites, c, meta] = await Promise.all([
      CLT.load(`images/${String(n).padStart(4, "0")}`),
      CLT.load("sprites"),
      CLT.catalogue(),
      CLT.load("features"),
    ]);
    const layers = Array.from({ length: e.layers }, (_, l) => l),
      picture = h("img", {
        src: e.picture,
        alt: `${e.key}`,
        style: {
          width: "100%",
          "max-width": "320px",
          "border-radius": "8px",
          display: "block",
          "image-rendering": "auto",
        },
      });
    const canvasBox = h("div", { style: { position: "relative", "max-width": "320px" } }, picture);
    const overlay = h("canvas", {
      style: {
        position: "absolute",
        inset: 0,
        width: "100%",
        height: "100%",
        "border-radius": "8px",
        "pointer-events": "none",
      },
      "aria-hidden": "true",
    });
    canvasBox.append(overlay);
    const said = h(
      "p",
      { class: "note", style: { "min-height": "2.6em", margin: "6px 0 0" } },
      "Point at a feature to see where it is active.",
    );
    const paint = (f) => {
      const g = overlay.getContext("2d"),
        [rows, columns] = e.grid,
        side = 320;
      overlay.width = overlay.height = side;
      g.clearRect(0, 0, side, side);
      if (!f) return;
      const peak = Math.max(...f.map.map(Math.abs)) || 1;
      f.map.slice(1).forEach((v, p) => {
        if (v) {
          const [r, gr, b] = CLT.fire(0.25 + (0.75 * Math.abs(v)) / peak);
          g.fillStyle = `rgb(${r} ${gr} ${b} / .5)`;
          g.strokeStyle = `rgb(${r} ${gr} ${b})`;
          g.lineWidth = 2;
          const w = side / columns,
            hh = side / rows,
            x = (p % columns) * w,
            y = Math.floor(p / columns) * hh;
          g.fillRect(x, y, w, hh);
          g.strokeRect(x + 1, y + 1, w - 2, hh - 2);
        }
      });
    };
    const chip = (l, f) => {
      const i = meta ? l * meta.features + f.feature : -1,
        name = c ? c.className(c.class_index[i]) : "";
      const over = () => {
        paint(f);
        said.textContent = `Layer ${l}, feature ${f.feature}: code ${CLT.num(f.value)} at ${f.position === 0 ? "[CLS]" : `patch ${f.position - 1}`}${f.map[0] ? `, [CLS] ${CLT.num(f.map[0])}` : ""}`;
      };
      return h(
        "a",
        {
          class: "shot",
          href: CLT.href("feature", [l, f.feature]),
          onpointerenter: over,
          onfocus: over,
          onpointerleave: () => paint(null),
        },
        c && c.image[i] >= 0
          ? CLT.thumb(sprites, c.image[i], { mode: "image", alt: `feature ${f.feature}` })
          : h("span", { class: "thumb" }),
        h(
          "div",
          { class: "shot" },
          h("figcaption", {}, h("b", {}, f.feature), ` ${CLT.num(f.value, 2)}`, h("span", { class: "cut" }, name)),
        ),
      );
    };
    return [
      h(
        "div",
        { class: "row between" },
        h("h1", {}, e.title),
        h(
          "div",
          { class: "row" },
          n > 0 && h("a", { href: CLT.href("image", [n - 1]) }, "← previous"),
          n < list.length - 1 && h("a", { href: CLT.href("image", [n + 1]) }, "next →"),
          h("a", { href: CLT.href("images") }, "all images"),
        ),
      ),
      h("p", { class: "lead" }, e.key),
      h(
        "div",
        { class: "grid" },
        h(
          "div",
          { class: "w4 stack" },
          h("section", { class: "card" }, canvasBox, said),
          h(
            "section",
            { class: "card" },
            h("h2", {}, "Classes"),
            h(
              "div",
              { class: "scroll" },
              CLT.table(
                [{ name: "Class", text: true }, "original", "replaced"],
                e.classes.map((k) => [
                  { v: k.name, t: k.class === e.class ? h("b", {}, k.name) : k.name },
                  {
                    v: k.original,
                    t: h(
                      "span",
                      {},
                      CLT.fixed(k.original, 1),
                      " ",
                      h("span", { class: "ci" }, CLT.percent(k.p_original)),
                    ),
                  },
                  {
                    v: k.replaced,
                    t: h(
                      "span",
                      {},
                      CLT.fixed(k.replaced, 1),
                      " ",
                      h("span", { class: "ci" }, CLT.percent(k.p_replaced)),
                    ),
                  },
                ]),
              ),
            ),
            h("p", { class: "note" }, "Logits (100 × cosine) and probabilities. Bold: the class taken apart below."),
          ),
        ),
        h(
          "div",
          { class: "w8" },
          h(
            "section",
            { class: "card" },
            h("header", {}, h("h2", {}, "Strongest features of every layer")),
            h(
              "p",
              { class: "note" },
              "The picture is the image on which the feature is strongest; the name, the class it fires for most.",
            ),
            h(
              "div",
              { class: "stack", style: { gap: "12px" } },
              layers.map((l) =>
                h(
                  "div",
                  { class: "row", style: { "flex-wrap": "nowrap", "align-items": "flex-start" } },
                  h("b", { style: { width: "30px", flex: "none", "padding-top": "4px" } }, `L${l}`),
                  h(
                    "div",
                    { class: "shots small eight", style: { flex: 1, "min-width": 0 } },
                    e.top_features[l].map((f) => chip(l, f)),
                  ),
                ),
              ),
            ),
          ),
        ),
        h("div", { class: "w6" }, decomposition(e.replaced, layers, "replaced")),
        h("div", { class: "w6" }, decomposition(e.original, layers, "original")),
      ),
    ];
  };
})();
