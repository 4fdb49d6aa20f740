// The images that have a page of their own.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.pages.images = async () => {
    const list = await CLT.load("images"),
      sprites = await CLT.load("sprites");
    const head = [
      h("h1", {}, "Images"),
      h(
        "p",
        { class: "lead" },
        "For each image: the strongest features of every layer, and its class logit as a sum of what each layer's attention, features, biases and errors add.",
      ),
    ];
    if (!list?.length) return [head, CLT.missing("images", "No image was explained")];
    return [
      head,
      h(
        "div",
        { class: "shots big" },
        list.map((e, n) =>
          h(
            "a",
            { class: "shot", href: CLT.href("image", [n]) },
            CLT.thumb(sprites, e.image, { mode: "image", alt: e.key }),
            h(
              "div",
              { class: "shot" },
              h(
                "figcaption",
                {},
                h("b", { class: "cut" }, e.label || e.key),
                h(
                  "span",
                  { class: "cut" },
                  e.label ? `${e.label === e.predicted ? "✓" : "✗"} seen as ${e.predicted}` : e.predicted,
                ),
              ),
            ),
          ),
        ),
      ),
    ];
  };
})();
