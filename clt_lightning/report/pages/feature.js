// The card of one feature: what drives it, and what it does.
(() => {
  "use strict";
  const { h } = CLT;

  // what it is, in a sentence
  function sentence(c, i, card) {
    const { kind, text, lift } = CLT.featureName(c, i);
    const does = card.does?.class;
    const parts = [
      `Active on ${CLT.percent(c.frequency[i], 2)} of the tokens and ${CLT.percent(c.image_frequency[i])} of the images`,
    ];
    if (kind === "class") parts.push(`, where ${text} is ${CLT.num(lift, 2)} times as frequent as among all`);
    parts.push(".");
    if (does && does[0] !== null)
      parts.push(
        ` Where it is active it ${does[0] < 0 ? "takes" : "adds"} ${CLT.num(Math.abs(does[0]))} logits ${does[0] < 0 ? "from" : "to"} the predicted class, against the mean of all.`,
      );
    return parts.join("");
  }

  CLT.pages.feature = async ([layerText, featureText]) => {
    const meta = await CLT.load("features");
    if (!meta) return [h("h1", {}, "Feature"), CLT.missing("feature", "No features were collected")];
    const layer = CLT.whole(layerText, meta.layers);
    const feature = CLT.whole(featureText, meta.features);
    if (layer === null || feature === null)
      throw new CLT.Nowhere(
        `There is no feature “${featureText ?? ""}” in layer “${layerText ?? ""}”: layers go from 0 to ${meta.layers - 1}, features from 0 to ${meta.features - 1}.`,
      );
    const chunk = Math.floor(feature / meta.chunk);
    const [{ evaluation }, c, sprites, { cards, maps }] = await Promise.all([
      CLT.load("report"),
      CLT.catalogue(),
      CLT.load("sprites"),
      CLT.load(`cards/${String(layer).padStart(2, "0")}_${String(chunk).padStart(4, "0")}`),
    ]);
    const i = layer * c.size + feature;
    const card = cards[feature % meta.chunk];
    const order = CLT.order?.length ? CLT.order : Int32Array.from({ length: c.n }, (_, k) => k);
    const at = order.indexOf(i);
    const beside = (k, text) =>
      at >= 0 && k >= 0 && k < order.length
        ? h(
            "a",
            { href: c.href(order[k]), rel: text, title: c.id(order[k]) },
            text === "previous" ? "← previous" : "next →",
          )
        : null;
    const python = () => meta.python.replace("LAYER", layer).replace("FEATURE", feature);
    const head = h(
      "div",
      { class: "row between" },
      h(
        "div",
        { class: "row" },
        h("h1", {}, `Layer ${layer} · feature ${feature}`),
        CLT.namePill(c, i),
        CLT.conflictBadge(c, i),
      ),
      h(
        "div",
        { class: "row tools-end" },
        beside(at - 1, "previous"),
        beside(at + 1, "next"),
        h("a", { href: CLT.href("features", [], { layer }) }, `layer ${layer}`),
        CLT.copyButton("copy link", () => location.href),
        CLT.copyButton("copy as Python", python),
      ),
    );
    if (!card)
      return [
        head,
        CLT.empty(
          c.frequency[i] > 0
            ? "No card was made for this feature (option --features of the report)."
            : "This feature never fired on the split.",
        ),
      ];
    const unpack = CLT.unpackMaps(maps, meta.positions);
    const f = { c, i, layer, feature, meta, card, sprites, map: (n) => unpack(n, card.peak) };
    return [
      head,
      h("p", { class: "lead" }, sentence(c, i, card)),
      h(
        "div",
        { class: "sides" },
        h(
          "div",
          { class: "stack" },
          h("h2", { class: "side" }, "What drives it"),
          CLT.cardImages(f),
          CLT.cardFirings(f),
          CLT.cardClasses(f),
        ),
        h(
          "div",
          { class: "stack" },
          h("h2", { class: "side" }, "What it does"),
          CLT.cardEffects(f, evaluation),
          CLT.cardWrites(f),
          CLT.cardNeighbours(f),
        ),
      ),
    ];
  };

  addEventListener("keydown", (e) => {
    const elsewhere = e.target.closest("input, select, textarea, dialog") || e.altKey || e.ctrlKey || e.metaKey;
    if (elsewhere || document.getElementById("main").dataset.ready !== "feature") return;
    const link = { ArrowLeft: "previous", ArrowRight: "next" }[e.key];
    const a = link && document.querySelector(`main a[rel="${link}"]`);
    if (a) {
      e.preventDefault();
      a.click();
    }
  });
})();
