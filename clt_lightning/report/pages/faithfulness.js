// Terms taken out of one layer's reconstruction, by score, at random, from the bottom.
(() => {
  "use strict";
  const { h } = CLT;
  const name = (f) =>
    `layer ${f.layer}, ${CLT.tokenName(f.tokens)}, ranked by ${f.ranking === "image" ? "each image" : "the data set"}, ${f.ablation} ablation`;
  const pc = (i) =>
    i
      ? h(
          "span",
          {},
          CLT.percent(i.value),
          " ",
          h(
            "span",
            { class: "ci" },
            i.low === null ? "" : `${CLT.fixed(100 * i.low, 1)}–${CLT.fixed(100 * i.high, 1)}`,
          ),
        )
      : "–";
  // keep_top[n] is drop_bottom[terms - n]; random likewise
  const curve = (list, label, style, keep) => {
    const values = keep ? [...list].reverse() : list;
    return {
      name: label,
      x: values.map((_, i) => i),
      y: values.map((i) => i.value),
      low: values.map((i) => i.low),
      high: values.map((i) => i.high),
      ...style,
    };
  };
  CLT.pages.faithfulness = async (_parts, query) => {
    const { evaluation: e, files } = await CLT.load("report");
    const head = [
      h("h1", {}, "Faithfulness"),
      h(
        "p",
        { class: "lead" },
        "A layer's reconstruction is a sum of one term a source layer. If the scores are right, taking out the terms that score high costs more than taking out random ones, and keeping them alone keeps more.",
      ),
    ];
    if (!e?.faithfulness?.length) return [head, CLT.missing("faithfulness", "Not measured")];
    const all = e.faithfulness,
      box = h("div", { class: "stack" });
    function draw(n) {
      const f = all[n],
        levels = [
          { name: `all terms ${CLT.percent(f.baseline.top1.value)}`, y: f.baseline.top1.value, color: "var(--ink-3)" },
          {
            name: `true MLP output ${CLT.percent(f.original.top1.value)}`,
            y: f.original.top1.value,
            color: "var(--s2)",
            dash: "2 3",
          },
        ];
      const options = {
        levels,
        yText: (v) => CLT.percent(v),
        xTicks: Array.from({ length: f.terms + 1 }, (_, i) => i),
        height: 300,
      };
      const styles = {
        top: { color: "var(--s1)" },
        random: { color: "var(--s5)", dash: "5 4" },
        bottom: { color: "var(--s0)" },
      };
      box.replaceChildren(
        h(
          "div",
          { class: "grid" },
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "Terms taken out",
              note: `Zero-shot top-1 with n of ${f.terms} terms left out. Lower is better for the top terms.`,
              files: files[`faithfulness_${n}`],
              body: CLT.charts.lines({
                ...options,
                xLabel: "terms taken out",
                label: "Top-1 by number of terms taken out",
                series: [
                  curve(f.drop_top.top1, "top terms", styles.top),
                  curve(f.drop_random.top1, `random terms (${f.draws} draws)`, styles.random),
                  curve(f.drop_bottom.top1, "bottom terms", styles.bottom),
                ],
              }),
            }),
          ),
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "Terms kept",
              note: `Zero-shot top-1 with only n of ${f.terms} terms left in. Higher is better for the top terms.`,
              body: CLT.charts.lines({
                ...options,
                xLabel: "terms kept",
                label: "Top-1 by number of terms kept",
                series: [
                  curve(f.drop_bottom.top1, "top terms", styles.top, true),
                  curve(f.drop_random.top1, `random terms (${f.draws} draws)`, styles.random, true),
                  curve(f.drop_top.top1, "bottom terms", styles.bottom, true),
                ],
              }),
            }),
          ),
        ),
      );
      CLT.remember("faithfulness", [], { n });
    }
    const start = CLT.whole(query.n, all.length) ?? 0;
    draw(start);
    const keep = (f) => Math.min(4, f.terms);
    const short = (f) => `L${f.layer} ${CLT.tokenName(f.tokens)} · ${f.ranking} · ${f.ablation}`;
    const rows = all.map((f) => [
      short(f),
      pc(f.original.top1),
      pc(f.baseline.top1),
      pc(f.drop_top.top1[1]),
      pc(f.drop_random.top1[1]),
      pc(f.drop_bottom.top1[f.terms - keep(f)]),
      pc(f.drop_random.top1[f.terms - keep(f)]),
      CLT.fixed(f.auc.deletion, 3),
      CLT.fixed(f.auc.insertion, 3),
      CLT.fixed(f.auc.random, 3),
    ]);
    return [
      head,
      h(
        "div",
        { class: "tools" },
        CLT.select(
          "Shown",
          all.map((f, i) => [i, name(f)]),
          start,
          (v) => draw(Number(v)),
        ),
      ),
      box,
      h(
        "div",
        { style: { "margin-top": "16px" } },
        CLT.figure({
          title: "All settings",
          note: "AUC: area under top-1 over the share of terms, taken out (deletion: low is good) or kept (insertion: high is good). Ranked by “image”: each image's own scores; “dataset”: the mean scores.",
          files: files.faithfulness,
          body: h(
            "div",
            { class: "scroll" },
            CLT.table(
              [
                { name: "Layer, tokens · ranked by · ablation", text: true },
                "true MLP",
                "all terms",
                "without top 1",
                "without random 1",
                `top ${keep(all[0])} kept`,
                `${keep(all[0])} random kept`,
                "AUC deletion",
                "AUC insertion",
                "AUC random",
              ],
              rows,
              { sortable: false },
            ),
          ),
        }),
      ),
    ];
  };
})();
