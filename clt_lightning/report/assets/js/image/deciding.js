// The features with the largest effect on the answer, and what the live model says without them.
(() => {
  "use strict";
  const { h } = CLT;
  const SHOWN = 20;
  const DECIDING = 5;
  const signed = (v, digits = 2) =>
    v === null || Number.isNaN(v) ? "–" : `${v > 0 ? "+" : ""}${CLT.fixed(v, digits)}`;

  // everything that is known of each feature about a question: [{row, layer, feature, total, integrated, direct, real}]
  CLT.featureEffects = (s, more, less) => {
    const total = s.total(more, less);
    const direct = s.direct(more, less);
    const integrated = s.integrated(more, less);
    return Array.from(s.layer, (layer, row) => ({
      row,
      layer,
      feature: s.feature[row],
      total: total[row],
      direct: direct ? direct[row] : null,
      integrated: integrated ? integrated[row] : null,
      real: s.real(s.ablated.get(row), more, less),
    }));
  };
  const best = (f) => (f.integrated === null || Number.isNaN(f.integrated) ? f.total : f.integrated);
  // those that decide: what speaks most for the answer as it is, by integrated gradients where they were computed
  CLT.deciding = (effects, answer) => {
    const sign = answer < 0 ? -1 : 1;
    return [...effects].sort((a, b) => sign * (best(b) - best(a))).slice(0, DECIDING);
  };

  const notAsked = (s, label) =>
    CLT.empty(
      `Effects of features were computed for the ${s.classes.length} classes that are likely here: choose two of these (the lists mark the others).`,
      label ? h("br") : null,
      label,
    );

  // tie: {link(layer, feature), watch(node, layer, feature)}: the page's way to name a feature and to show its map
  CLT.effectsCard = (s, words, [more, less], tie) => {
    const title = "Which features";
    if (!s.asked(more, less)) return CLT.figure({ title, body: notAsked(s) });
    const effects = CLT.featureEffects(s, more, less);
    const scale = Math.max(...effects.map((f) => Math.abs(f.total)), 1e-9);
    const any = (key) => effects.some((f) => f[key] !== null && !Number.isNaN(f[key]));
    const columns = [
      ["total", "gradient", "code x gradient of the live model, over all positions and layers"],
      ["integrated", "integrated", "the same along the path from the code to 0"],
      ["direct", "direct", "what of it goes straight to the read-out, at [CLS]"],
      ["real", "real", "what the live model loses without what the feature writes"],
    ].filter(([key]) => any(key));
    const table = (list, caption) =>
      h(
        "table",
        { class: "plain effects" },
        h("caption", {}, caption),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "Feature"),
            columns.map(([key, name, why]) =>
              h("th", { scope: "col", title: why, class: key === "direct" ? "hide-s" : null }, name),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          list.map((f) =>
            tie.watch(
              h(
                "tr",
                {},
                h("th", { scope: "row" }, tie.link(f.layer, f.feature)),
                columns.map(([key]) =>
                  h(
                    "td",
                    {
                      class: key === "direct" ? "hide-s" : key === "total" ? "bar" : null,
                      style: key === "total" ? { "--part": `${(100 * Math.abs(f.total)) / scale}%` } : {},
                      "data-sign": key === "total" ? Math.sign(f.total) : null,
                    },
                    signed(f[key]),
                  ),
                ),
              ),
              f.layer,
              f.feature,
            ),
          ),
        ),
      );
    const up = effects.filter((f) => f.total > 0).sort((a, b) => b.total - a.total);
    const down = effects.filter((f) => f.total < 0).sort((a, b) => a.total - b.total);
    return CLT.figure({
      title,
      note: `The ${SHOWN} with the largest total effect on ${words.answer} each way, in logits: what the feature's codes add, attention and later MLPs at work.${any("integrated") ? "" : s.question(more, less) ? ` One gradient stands for each; integrated ones: ${words.command}.` : " Integrated gradients: for predicted minus runner-up (and minus the image's class) of images studied in full."}`,
      body: h(
        "div",
        { class: "pair" },
        h("div", { class: "scroll" }, table(up.slice(0, SHOWN), `for ${words.more}`)),
        h("div", { class: "scroll" }, table(down.slice(0, SHOWN), `for ${words.less}`)),
      ),
    });
  };

  CLT.withoutCard = (s, words, [more, less], tie) => {
    const title = "What happens without them";
    if (!s.asked(more, less)) return CLT.figure({ title, body: notAsked(s) });
    const question = s.question(more, less);
    const answer = s.answer(more, less, false);
    const list = CLT.deciding(CLT.featureEffects(s, more, less), answer);
    const row = (name, predicted, a, cls) => {
      const real = s.real(a, more, less);
      const first = h("th", { scope: "row" }, name);
      const top = a ? words.name(a.top) : "–";
      const p = a ? s.probabilityAfter(a, a.top) : null;
      return h(
        "tr",
        { class: cls },
        first,
        h("td", {}, signed(-predicted)),
        h("td", { class: "real" }, real === null ? "–" : signed(-real)),
        h("td", {}, real === null ? "–" : signed(answer - real)),
        h(
          "td",
          { class: "t" },
          a && a.top !== s.predicted ? h("b", {}, top) : top,
          p === null ? null : h("span", { class: "ci" }, ` ${CLT.percent(p)}`),
        ),
      );
    };
    const together = s.together(more, less);
    const known = list.some((f) => f.real !== null);
    return CLT.figure({
      title,
      note: `The ${list.length} features that speak most for the answer: ${words.answer} is ${signed(answer)}. What each writes was taken out of the live model's MLP outputs; everything after reacts. Predicted: ${s.integrated(more, less) ? "integrated gradients" : "one gradient"}.`,
      body: h(
        "div",
        {},
        h(
          "div",
          { class: "scroll" },
          h(
            "table",
            { class: "plain without" },
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                h("th", { scope: "col" }, "Without"),
                h("th", { scope: "col" }, "predicted change"),
                h("th", { scope: "col" }, "real change"),
                h("th", { scope: "col" }, `${words.short} then`),
                h("th", { scope: "col", class: "t" }, "seen as then"),
              ),
            ),
            h(
              "tbody",
              {},
              list.map((f) =>
                tie.watch(
                  row(tie.link(f.layer, f.feature), best(f), s.ablated.get(f.row) || null, null),
                  f.layer,
                  f.feature,
                ),
              ),
              together && row(`all ${together.rows.length} together`, together.predicted, together, "strong"),
            ),
          ),
        ),
        known || question
          ? null
          : h(
              "p",
              { class: "note" },
              "Really taken out were the features that decide predicted minus runner-up, and predicted minus the image's own class.",
            ),
      ),
    });
  };
})();
