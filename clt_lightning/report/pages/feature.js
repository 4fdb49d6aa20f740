// The card of one feature.
(() => {
  "use strict";
  const { h } = CLT;
  const CARD_MODES = [
    ["squares", "squares"],
    ["reveal", "reveal"],
    ["image", "image"],
  ];
  let mode = "squares";

  const stat = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
  const names = (list, title, note) =>
    list?.length
      ? h(
          "div",
          {},
          h("h3", {}, title),
          h("p", { class: "note" }, note),
          CLT.charts.bars({
            items: list.map(([name, v]) => ({ name: name.length > 18 ? `${name.slice(0, 17)}…` : name, value: v })),
            show: (v) => CLT.fixed(v, 3),
            label: title,
            nameWidth: 128,
          }),
        )
      : null;

  CLT.pages.feature = async ([layerText, featureText]) => {
    const layer = Number(layerText),
      feature = Number(featureText),
      meta = await CLT.load("features");
    if (!meta) return [h("h1", {}, "Features"), CLT.empty("No features were collected.")];
    if (!(layer >= 0 && layer < meta.layers && feature >= 0 && feature < meta.features))
      throw new Error(
        `There is no feature ${featureText} in layer ${layerText}: layers go to ${meta.layers - 1}, features to ${meta.features - 1}.`,
      );
    const [c, sprites, chunk] = await Promise.all([
      CLT.catalogue(),
      CLT.load("sprites"),
      CLT.load(`cards/${String(layer).padStart(2, "0")}_${String(Math.floor(feature / meta.chunk)).padStart(4, "0")}`),
    ]);
    const i = layer * c.size + feature,
      card = chunk.cards[feature % meta.chunk];
    const title = h("h1", {}, `Layer ${layer} · feature ${feature}`);
    const order = CLT.order?.length ? CLT.order : Int32Array.from({ length: c.n }, (_, k) => k),
      at = order.indexOf(i);
    const link = (k, text) =>
      k >= 0 && k < order.length
        ? h(
            "a",
            { href: CLT.href("feature", [c.layer(order[k]), c.feature(order[k])]), rel: text },
            text === "previous" ? "← previous" : "next →",
          )
        : null;
    const bar = h(
      "div",
      { class: "row between" },
      title,
      h(
        "div",
        { class: "row" },
        at >= 0 && link(at - 1, "previous"),
        at >= 0 && link(at + 1, "next"),
        h("a", { href: CLT.href("features", [], { layer }) }, `layer ${layer}`),
      ),
    );
    if (!card)
      return [
        bar,
        CLT.empty(
          c.frequency[i] > 0
            ? `No card was made for this feature (option --features of the report).`
            : "This feature never fired on the split.",
        ),
      ];

    const unpack = CLT.unpackMaps(chunk.maps, meta.positions),
      map = (n) => unpack(n, card.peak);
    const caption = (image, value, m) =>
      h(
        "figcaption",
        {},
        h("b", {}, CLT.num(value)),
        m && Math.abs(m[0]) > 0 ? h("span", { class: "pill", title: `[CLS] code ${CLT.num(m[0])}` }, "[CLS]") : null,
        h(
          "span",
          { class: "cut", title: sprites.keys[image] },
          sprites.labels[image] >= 0 ? c.className(sprites.labels[image]) : sprites.keys[image],
        ),
      );
    const shot = ([image, value, n], crop) => {
      const m = map(n),
        patch = CLT.strongestPatch(m);
      return h(
        "figure",
        { class: "shot" },
        CLT.thumb(sprites, image, {
          map: m,
          peak: card.peak,
          grid: meta.grid,
          mode: crop ? "image" : mode,
          crop: crop ? patch : undefined,
          alt: `${sprites.keys[image]}, code ${CLT.num(value)}`,
        }),
        crop ? null : caption(image, value, m),
      );
    };
    const top = h("div", { class: "shots big" }),
      crops = h("div", { class: "shots small" }),
      rows = h("div", { class: "quarters" });
    function draw() {
      top.replaceChildren(...card.top.map((t) => shot(t)));
      crops.replaceChildren(...card.top.filter((t) => CLT.strongestPatch(map(t[2])) >= 0).map((t) => shot(t, true)));
      rows.replaceChildren(
        ...card.quantiles.map(([name, list]) =>
          h(
            "div",
            {},
            h("h3", {}, name),
            h(
              "div",
              { class: `shots fixed ${list.length < 3 ? "few" : ""}` },
              list.map((t) => shot(t)),
            ),
          ),
        ),
      );
    }
    draw();
    const d = card.decoder_norm;
    return [
      bar,
      h(
        "div",
        { class: "grid", style: { "margin-top": "12px" } },
        h(
          "div",
          { class: "w8 stack" },
          CLT.figure({
            title: "Strongest images",
            note: "Squares: the feature's code at each patch, exactly what the encoder gives, on one colour scale for this card.",
            tools: CLT.segments("Drawing", CARD_MODES, mode, (v) => {
              mode = v;
              draw();
            }),
            body: h("div", {}, top, CLT.scaleFire(card.peak)),
          }),
          crops.children.length
            ? CLT.figure({
                title: "Strongest patches",
                note: "The surroundings of each image's strongest patch.",
                body: crops,
              })
            : null,
          card.quantiles.length
            ? CLT.figure({
                title: "From strong to weak",
                note: "A uniform sample of the images on which it is active, cut into equal parts.",
                body: rows,
              })
            : null,
        ),
        h(
          "div",
          { class: "w4 stack" },
          h(
            "section",
            { class: "card" },
            h("h3", {}, "Numbers"),
            h(
              "dl",
              { class: "record" },
              stat("active on", `${CLT.percent(c.frequency[i], 3)} of tokens`),
              stat("", `${CLT.percent(c.image_frequency[i], 2)} of images`),
              stat("", `${CLT.percent(c.cls_frequency[i], 2)} of [CLS]`),
              stat("mean code", CLT.num(c.mean_code[i])),
              stat("largest code", CLT.num(c.max_code[i])),
              stat("monosemanticity", CLT.fixed(c.monosemanticity[i], 3)),
              c.classnames.length ? stat("label entropy", `${CLT.fixed(c.label_entropy[i], 3)} nats`) : null,
            ),
          ),
          h(
            "section",
            { class: "card" },
            h("h3", {}, "What it writes"),
            h("p", { class: "note" }, "Norm of what a code of 1 adds to each layer's MLP output."),
            CLT.charts.bars({
              items: d.map((v, k) => ({ name: `layer ${k + layer}`, value: v })),
              label: "Decoder norms by target layer",
              nameWidth: 70,
            }),
          ),
          card.classes.length
            ? h(
                "section",
                { class: "card" },
                names(
                  card.classes.map(([k, v]) => [c.className(k), v]),
                  "Classes",
                  "Share of its activation over classes.",
                ),
              )
            : null,
          card.nearest_classes.length || card.nearest_words.length
            ? h(
                "section",
                { class: "card" },
                names(
                  card.nearest_classes.map(([k, v]) => [c.className(k), v]),
                  "Nearest class names",
                  "By CLIP's text embedding: cosine to the mean direction of its images.",
                ),
                card.nearest_words.length
                  ? h(
                      "div",
                      { style: { "margin-top": "12px" } },
                      names(
                        card.nearest_words.map(([k, v]) => [c.word(k), v]),
                        "Nearest words",
                        "The same, for a list of words.",
                      ),
                    )
                  : null,
              )
            : null,
        ),
      ),
    ];
  };
  addEventListener("keydown", (e) => {
    if (
      e.target.closest("input, select, textarea") ||
      e.altKey ||
      e.ctrlKey ||
      e.metaKey ||
      document.getElementById("main").dataset.ready !== "feature"
    )
      return;
    const link = { ArrowLeft: "previous", ArrowRight: "next" }[e.key];
    const a = link && document.querySelector(`main a[rel="${link}"]`);
    if (a) {
      e.preventDefault();
      a.click();
    }
  });
})();
