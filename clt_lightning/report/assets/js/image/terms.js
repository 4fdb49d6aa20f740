// The logit, or the margin, as a sum: by kind, or by layer and kind.
(() => {
  "use strict";
  const { h } = CLT;
  const COLORS = {
    embedding: "var(--s5)",
    attention: "var(--s4)",
    features: "var(--s0)",
    skip: "var(--s2)",
    bias: "var(--s3)",
    error: "var(--s1)",
    "norm bias": "var(--s5)",
  };
  const NAMES = { skip: "linear skip", bias: "decoder bias" };
  const named = (kind) => NAMES[kind] || kind;

  function items(terms, by) {
    const there = terms.filter((t) => !(["skip", "error"].includes(t.kind) && t.value === 0));
    if (by === "layer") {
      const order = (t) => (t.kind === "embedding" ? -1 : t.layer === null ? Infinity : t.layer);
      return [...there]
        .sort((a, b) => order(a) - order(b))
        .map((t) => ({
          name: t.layer === null ? t.kind : `${named(t.kind)} ${t.layer}`,
          value: t.value,
          color: COLORS[t.kind],
          group: order(t),
        }));
    }
    const sums = new Map();
    for (const t of there) sums.set(t.kind, (sums.get(t.kind) || 0) + t.value);
    return [...sums].map(([kind, value]) => ({ name: named(kind), value, color: COLORS[kind] }));
  }

  // state: {by, model}, kept by the page
  CLT.termsCard = (s, words, [more, less], state, redraw) => {
    const replaced = state.model === "replaced" && s.hasTerms(true);
    const title = replaced ? "Where it comes from, with all MLPs replaced" : "Where it comes from";
    if (!s.hasTerms(false))
      return CLT.figure({
        title,
        body: CLT.empty("This backbone does not read its embedding from [CLS] alone: its logits are no such sum."),
      });
    const terms = s.terms(more, less, replaced);
    const sum = terms.reduce((a, t) => a + t.value, 0);
    const answer = s.answer(more, less, replaced);
    const cell = (name, value, cls) =>
      h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: cls }, CLT.fixed(value, 4)));
    return CLT.figure({
      title,
      note: `What each part of the model adds to ${words.answer} directly, in logits; LayerNorm's scale is this image's own. What a part does through later layers is counted there. Features: by the layer that they are read from.${replaced ? " Nothing else writes, so no error is left." : ""}`,
      tools: [
        CLT.segments(
          "Parts",
          [
            ["kind", "by kind"],
            ["layer", "by layer and kind"],
          ],
          state.by,
          (v) => {
            state.by = v;
            redraw();
          },
        ),
        s.hasTerms(true) &&
          CLT.segments(
            "Model",
            [
              ["original", "untouched"],
              ["replaced", "all MLPs replaced"],
            ],
            replaced ? "replaced" : "original",
            (v) => {
              state.model = v;
              redraw();
            },
          ),
      ],
      body: h(
        "div",
        {},
        CLT.charts.waterfall({ items: items(terms, state.by), total: words.short, label: `Parts of ${words.answer}` }),
        h(
          "table",
          { class: "plain sums" },
          h("tbody", {}, cell("sum of the parts", sum, "terms-sum"), cell(words.answer, answer, "terms-logit")),
        ),
      ),
    });
  };
})();
