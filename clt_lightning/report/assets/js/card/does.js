// Right half of a feature's card: what it does.
(() => {
  "use strict";
  const { h } = CLT;
  const signed = (v) => (v === null || v === undefined ? "–" : `${v > 0 ? "+" : ""}${CLT.num(v)}`);
  const short = (name) => (name.length > 18 ? `${name.slice(0, 17)}…` : name);

  // bars of classes, its own marked
  function classBars(c, own, list, label) {
    return CLT.charts.bars({
      items: list.map(([k, v]) => ({
        name: (k === own ? "▸ " : "") + short(c.className(k)),
        value: v,
        strong: k === own,
      })),
      show: signed,
      label,
      nameWidth: 132,
      rowHeight: 20,
    });
  }

  CLT.cardEffects = ({ c, i, card, layer }, evaluation) => {
    const does = card.does;
    if (!does)
      return CLT.card(
        "Effects on the logits",
        { level: 3 },
        CLT.empty("Not measured: this needs class names, and `evaluate.effects`."),
      );
    const own = c.name_kind[i] === 1 ? c.lift_class[i] : -1;
    const row = (name, [mean, std, sum]) => [name, signed(mean), CLT.num(std), signed(sum)];
    const table = CLT.table(
      [{ name: "Total effect on", text: true }, "mean", "spread", "sum"],
      [row("predicted class minus mean of all", does.class), row("predicted class minus runner-up", does.margin)],
      { sortable: false },
    );
    const found = CLT.conflictBadge(c, i);
    return [
      CLT.card(
        "Effects on the logits",
        {
          level: 3,
          note: `Where it is active (${CLT.count(does.images)} images): code × gradient of the live model, over all positions and all layers that it writes to, in logits.`,
        },
        found ? h("p", { class: "row" }, found, h("span", { class: "note", style: { margin: 0 } }, found.title)) : null,
        CLT.scroll("Total effects", table),
        CLT.effectCheckLine(evaluation?.effects, layer),
        h(
          "details",
          {},
          h("summary", {}, "How far to trust this: predicted beside real ablation"),
          h("p", { class: "note" }, CLT.EFFECT_CHECK_NOTE),
          CLT.effectCheck(evaluation?.effects),
        ),
      ),
      CLT.card(
        "Which classes it raises and lowers",
        { level: 3, note: own >= 0 ? `▸ marks ${c.className(own)}, which it is named by.` : null },
        h(
          "div",
          { class: "halves" },
          does.direct
            ? h(
                "div",
                {},
                h("h4", {}, "Direct"),
                h(
                  "p",
                  { class: "note" },
                  "A code of 1 at [CLS], through the read-out alone: from the weights. Minus the mean over classes.",
                ),
                classBars(c, own, does.direct, "Direct effect, the eight largest and the eight smallest classes"),
              )
            : null,
          h(
            "div",
            {},
            h("h4", {}, "Total"),
            h(
              "p",
              { class: "note" },
              "In the live model: mean over the images predicted as each class, also where it is silent.",
            ),
            classBars(c, own, does.classes, "Total effect by predicted class, the largest and the smallest"),
          ),
        ),
      ),
    ];
  };

  CLT.cardWrites = ({ card, layer, c, i }) => {
    const bars = (values, label, show) =>
      CLT.charts.bars({
        items: values.map((v, k) => ({ name: `layer ${k + layer}`, value: v })),
        label,
        show,
        nameWidth: 62,
        rowHeight: 20,
      });
    const through = card.does?.through;
    const written = card.decoder_norm.flatMap((v, k) => (v ? [k + layer] : []));
    // one square a layer that it could write to; only where a prior or a cut has set some to exactly 0
    const strip =
      written.length < card.decoder_norm.length
        ? h(
            "p",
            { class: "support", role: "img", "aria-label": `Depth support: layers ${written.join(", ") || "none"}` },
            card.decoder_norm.map((v, k) =>
              h("span", { class: v ? "there" : "", title: `layer ${k + layer}: ${v ? "written" : "exactly 0"}` }),
            ),
            h(
              "span",
              { class: "note" },
              `writes to ${written.length ? `layers ${written.join(", ")}` : "no layer"}; exactly 0 elsewhere`,
            ),
          )
        : null;
    return CLT.card(
      "Where it writes",
      {
        level: 3,
        note:
          card.decoder_norm.length > 1
            ? `Into ${CLT.fixed(c.written[i], 1)} layers, counted by squared norm; ${CLT.fixed(c.reach[i], 1)} layers ahead on average.`
            : "Into its own layer alone: it is the last one.",
      },
      strip,
      h(
        "div",
        { class: "halves" },
        h(
          "div",
          {},
          h("h4", {}, "Norm"),
          h("p", { class: "note" }, "What a code of 1 adds to each layer's MLP output."),
          bars(card.decoder_norm, "Decoder norm by layer"),
        ),
        through
          ? h(
              "div",
              {},
              h("h4", {}, "Direct effect"),
              h("p", { class: "note" }, "Spread over classes of what goes through each layer."),
              bars(through, "Spread of the direct effect by layer"),
            )
          : null,
      ),
    );
  };

  const KINDS = {
    decoder: ["write alike", "Cosine of the decoders, all layers together; of the same layer."],
    encoder: ["read alike", "Cosine of the encoders; of the same layer."],
    together: [
      "fire together",
      "Pointwise mutual information over images, in nats; of the same layer, from the codes that were kept.",
    ],
    reader: [
      "readers",
      "Later features that read what it writes: virtual weights through the residual stream, by size. Negative: it switches them off.",
    ],
    writer: ["writers", "Earlier features that write what it reads: virtual weights, by size."],
  };
  let kind = "decoder";
  CLT.cardNeighbours = ({ c, card, sprites }) => {
    const kinds = Object.keys(KINDS).filter((k) => card.near[k]?.length);
    if (!kinds.length) return null;
    if (!kinds.includes(kind)) kind = kinds[0];
    const note = h("p", { class: "note" });
    const list = h("ol", { class: "near" });
    const draw = () => {
      note.textContent = KINDS[kind][1];
      const largest = Math.max(...card.near[kind].map(([, , s]) => Math.abs(s)));
      list.replaceChildren(
        ...card.near[kind].map(([l, f, score]) => {
          const i = l * c.size + f;
          return h(
            "li",
            {},
            h(
              "a",
              { href: c.href(i) },
              c.image[i] >= 0
                ? CLT.thumb(sprites, c.image[i], { mode: "image", alt: "", link: false })
                : h("span", { class: "thumb" }),
              h("b", {}, c.id(i)),
              CLT.namePill(c, i),
              CLT.effectBar(score, largest),
              h("span", { class: "n" }, CLT.fixed(score, 2)),
            ),
          );
        }),
      );
    };
    draw();
    const tools = CLT.segments(
      "Kind of neighbour",
      kinds.map((k) => [k, KINDS[k][0]]),
      kind,
      (v) => {
        kind = v;
        draw();
      },
    );
    return CLT.card("Neighbours", { level: 3, tools }, note, list);
  };
})();
