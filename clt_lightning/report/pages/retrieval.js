// The queries whose neighbours were looked up.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.pages.retrieval = async () => {
    const r = await CLT.load("retrieval"),
      sprites = await CLT.load("sprites");
    const head = [
      h("h1", {}, "Retrieval"),
      h(
        "p",
        { class: "lead" },
        "Images that are nearest to a query by their sparse codes, layer by layer: what a layer takes for alike.",
      ),
    ];
    if (!r?.length) return [head, CLT.missing("retrieval", "No codes were kept")];
    return [
      head,
      h(
        "div",
        { class: "shots big" },
        r.map((q, n) =>
          h(
            "a",
            { class: "shot", href: CLT.href("query", [n]) },
            CLT.thumb(sprites, q.image, { mode: "image", alt: q.key, link: false }),
            h(
              "div",
              { class: "shot" },
              h("figcaption", {}, h("b", { class: "cut" }, q.label || q.key), h("span", { class: "cut" }, q.key)),
            ),
          ),
        ),
      ),
    ];
  };
})();
