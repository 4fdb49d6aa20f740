// The codes of a patch with their effects, and the strongest features of every layer.
(() => {
  "use strict";
  const { h } = CLT;
  const LISTED = 12;

  // what is active at a position, the largest effect first; without effects, the largest code
  CLT.patchCard = (s, words, [more, less], position, tie, where) => {
    if (position === null)
      return h("p", { class: "note" }, "Pick a patch of the picture, or [CLS]: its codes and what they add.");
    const question = s.questions.length && more !== null ? s.question(more, less) : null;
    const list = s.codes.flatMap((part, layer) =>
      part.at(position).map((c) => ({ ...c, layer, effect: question ? question.sign * c.effects[question.n] : null })),
    );
    const weight = (c) => Math.abs(question ? c.effect : c.code);
    list.sort((a, b) => weight(b) - weight(a));
    const active = s.codes.reduce((sum, part) => sum + part.active[position], 0);
    const row = (c) =>
      tie.watch(
        h(
          "tr",
          {},
          h("th", { scope: "row" }, tie.link(c.layer, c.feature)),
          h("td", {}, CLT.num(c.code)),
          question && h("td", {}, `${c.effect > 0 ? "+" : ""}${CLT.fixed(c.effect, 2)}`),
        ),
        c.layer,
        c.feature,
      );
    const table = (part) =>
      h(
        "table",
        { class: "plain effects" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "Feature"),
            h("th", { scope: "col" }, "code"),
            question && h("th", { scope: "col" }, "adds here"),
          ),
        ),
        h("tbody", {}, part.map(row)),
      );
    const less_ = active > list.length ? `, of which the ${list.length} strongest are here` : "";
    return h(
      "div",
      { class: "patchlist" },
      h("h3", {}, where(position)),
      h(
        "p",
        { class: "note" },
        `${active} codes${less_}. ${question ? `Adds here: to ${words.answer}, from this position, by one gradient.` : words.answer ? `Effects by position are known for ${words.asked}.` : ""}`,
      ),
      h("div", { class: "scroll" }, table(list.slice(0, LISTED))),
      list.length > LISTED
        ? h(
            "details",
            {},
            h("summary", {}, `${list.length - LISTED} more`),
            h("div", { class: "scroll" }, table(list.slice(LISTED))),
          )
        : null,
    );
  };

  // catalogue: of all features, for the picture of each; null without
  CLT.strongestCard = (s, sprites, c, tie) => {
    const layers = s.codes.map((part, layer) => {
      const order = Array.from(part.features, (_, n) => n).sort((a, b) => part.peaks[b] - part.peaks[a]);
      return order.slice(0, 8).map((n) => ({ layer, feature: part.features[n], code: part.peaks[n] }));
    });
    const chip = (f) => {
      const i = c ? f.layer * c.size + f.feature : -1;
      const thumb =
        c && c.image[i] >= 0
          ? CLT.thumb(sprites, c.image[i], {
              mode: "image",
              alt: `strongest image of feature ${f.feature}`,
              link: false,
            })
          : h("span", { class: "thumb" });
      return tie.watch(
        h(
          "a",
          { class: "shot", href: CLT.href("feature", [f.layer, f.feature]) },
          thumb,
          h(
            "span",
            { class: "said" },
            h("b", {}, f.feature),
            ` ${CLT.num(f.code, 2)}`,
            h("span", { class: "cut" }, tie.name(f.layer, f.feature)),
          ),
        ),
        f.layer,
        f.feature,
      );
    };
    return CLT.figure({
      title: "Strongest features of every layer",
      note: "By their largest code on this image. The picture is the image on which the feature is strongest of all.",
      body: h(
        "div",
        { class: "stack layers" },
        layers.map((list, l) =>
          h("div", { class: "layer" }, h("b", {}, `L${l}`), h("div", { class: "shots small eight" }, list.map(chip))),
        ),
      ),
    });
  };
})();
