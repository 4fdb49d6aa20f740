// Images and features nearest to a phrase.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.pages.search = async (_, query) => {
    if (!CLT.live.on) return CLT.live.needed("search");
    const about = await CLT.live.about();
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    const out = h("div", { class: "stack" });
    const said = h("p", { class: "note", role: "status" });
    const box = h("input", {
      type: "search",
      name: "phrase",
      id: "phrase",
      maxlength: 300,
      value: query.q || "",
      placeholder: about.classnames.length ? `such as ${about.classnames[0]}` : "a phrase",
      "aria-label": "A word or a phrase",
    });
    let turn = 0;
    async function look(phrase) {
      const mine = ++turn;
      if (!phrase.trim()) return;
      said.textContent = "Looking …";
      said.classList.remove("error");
      try {
        const found = await CLT.live.ask("search", { phrase });
        const { pictures } = await CLT.live.ask("thumbnails", { images: found.images.map(([n]) => n) });
        if (mine !== turn) return;
        CLT.remember("search", [], { q: phrase });
        said.textContent = `Nearest to “${found.phrase}”.`;
        draw(found, pictures);
      } catch (error) {
        if (mine !== turn) return;
        said.textContent = error.message;
        said.classList.add("error");
        out.replaceChildren();
      }
    }
    const feature = (layer, number, text) => {
      const i = c ? layer * c.size + number : -1;
      return h(
        "li",
        {},
        CLT.strongest(c, sprites, layer, number),
        h(
          "span",
          {},
          h("a", { href: CLT.href("feature", [layer, number]) }, `L${layer} · ${number}`),
          " ",
          c ? CLT.namePill(c, i) : CLT.notes.name(layer, number),
          h("span", { class: "ci" }, ` ${text}`),
        ),
        h("a", { href: CLT.href("live", [], { edits: `${layer}:${number}:scale:0` }), class: "small" }, "move it"),
      );
    };
    function draw(found, pictures) {
      const missing = (what) => CLT.empty(what);
      out.replaceChildren(
        h(
          "div",
          { class: "grid" },
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "Features that respond to it",
              note: "Cosine between the phrase and the mean of the images on which a feature is active, weighted by its code; both relative to their own mean. In brackets: how many images.",
              body: found.responds
                ? found.responds.length
                  ? h(
                      "ul",
                      { class: "pairs" },
                      found.responds.map(([l, f, v, n]) => feature(l, f, `${CLT.fixed(v, 2)} (${n})`)),
                    )
                  : missing("None points its way.")
                : missing("No codes of images were kept by test."),
            }),
          ),
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "Features that write it",
              note: "What a feature's mean code at [CLS] adds to the phrase's logit, minus that of an average text, through the read-out alone.",
              body: found.writes
                ? found.writes.length
                  ? h(
                      "ul",
                      { class: "pairs" },
                      found.writes.map(([l, f, v]) => feature(l, f, `+${CLT.num(v)}`)),
                    )
                  : missing("None.")
                : missing("Not known for this backbone: its embedding is not read from [CLS] alone."),
            }),
          ),
        ),
        CLT.figure({
          title: "Images",
          note: `Nearest of ${CLT.count(about.stored.length)} stored images of the ${about.split} split, by CLIP's own embeddings.`,
          body: found.images.length
            ? h(
                "div",
                { class: "shots big" },
                found.images.map(([n, cosine], at) =>
                  h(
                    "a",
                    { class: "shot", href: CLT.href("live", [], { key: about.stored[n][0] }) },
                    h("span", { class: "thumb" }, h("img", { src: pictures[at], alt: about.stored[n][0] })),
                    h(
                      "span",
                      { class: "figcaption" },
                      h("b", {}, CLT.fixed(cosine, 3)),
                      " ",
                      h(
                        "span",
                        { class: "cut" },
                        about.stored[n][1] >= 0 ? about.classnames[about.stored[n][1]] : about.stored[n][0],
                      ),
                    ),
                  ),
                ),
              )
            : missing("No images are stored (--images 0)."),
        }),
      );
    }
    if (query.q) look(query.q);
    return [
      h("h1", {}, "Search"),
      h(
        "p",
        { class: "lead" },
        "A word or a phrase, read by CLIP's text tower: the images and the features that are nearest to it.",
      ),
      h(
        "form",
        {
          class: "tools",
          role: "search",
          onsubmit: (e) => {
            e.preventDefault();
            look(box.value);
          },
        },
        box,
        h("button", { type: "submit", class: "plain" }, "Search"),
      ),
      said,
      out,
    ];
  };
})();
