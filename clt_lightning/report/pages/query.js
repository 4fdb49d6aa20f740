// A query image and, for each layer, the images whose codes are nearest.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.pages.query = async ([number]) => {
    const r = await CLT.load("retrieval"),
      sprites = await CLT.load("sprites"),
      n = CLT.whole(number),
      { classnames } = await CLT.load("report");
    if (!r?.[n]) throw new CLT.Nowhere(`There is no query “${number ?? ""}” in this report.`);
    const q = r[n];
    return [
      h(
        "div",
        { class: "row between" },
        h("h1", {}, `Nearest to ${q.label || q.key}`),
        h(
          "div",
          { class: "row" },
          n > 0 && h("a", { href: CLT.href("query", [n - 1]) }, "← previous"),
          n < r.length - 1 && h("a", { href: CLT.href("query", [n + 1]) }, "next →"),
          h("a", { href: CLT.href("retrieval") }, "all queries"),
        ),
      ),
      h("p", { class: "lead" }, "Cosine between the images' mean codes. Ringed and ticked: the query's own class."),
      h(
        "div",
        { class: "grid" },
        h(
          "div",
          { class: "w4" },
          h(
            "section",
            { class: "card" },
            h("h2", {}, "Query"),
            h(
              "div",
              { class: "shot", style: { "max-width": "220px" } },
              CLT.thumb(sprites, q.image, { mode: "image", alt: q.key }),
            ),
            h("p", { class: "note", style: { "overflow-wrap": "anywhere" } }, `${q.label} ${q.key}`),
          ),
        ),
        h(
          "div",
          { class: "w8" },
          h(
            "section",
            { class: "card stack", style: { gap: "14px" } },
            q.layers.map((list, l) =>
              h(
                "div",
                {},
                h("h2", {}, `Layer ${l}`),
                h(
                  "div",
                  { class: "shots small" },
                  list.map(([image, similarity]) => {
                    const label = sprites.labels[image],
                      same = label >= 0 && label === q.class;
                    return h(
                      "figure",
                      { class: `shot ${same ? "same" : ""}` },
                      CLT.thumb(sprites, image, { mode: "image", alt: sprites.keys[image] }),
                      h(
                        "figcaption",
                        {},
                        h("b", {}, CLT.fixed(similarity, 2)),
                        same ? " ✓" : "",
                        h("span", { class: "cut" }, label >= 0 ? classnames[label] : ""),
                      ),
                    );
                  }),
                ),
              ),
            ),
          ),
        ),
      ),
    ];
  };
})();
