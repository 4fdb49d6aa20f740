// Terms taken out of one layer's reconstruction, by score, at random, from the bottom.
(() => {
  "use strict";
  const { h } = CLT;
  const METRICS = { top1: "top-1", kl: "KL" };
  const name = (f) =>
    `layer ${f.layer}, ${CLT.tokenName(f.tokens)}, ranked by ${f.ranking === "image" ? "each image" : "the data set"}, ${f.ablation} ablation`;
  // how many terms a table keeps: fewer than there are, or nothing was taken out
  const kept = (f) => (f.terms > 4 ? 4 : Math.floor(f.terms / 2));

  const STYLES = {
    top: { color: "var(--s1)" },
    random: { color: "var(--s5)", dash: "5 4" },
    bottom: { color: "var(--s0)" },
  };
  // keeping the top n is dropping the bottom terms - n
  function curves(f, metric, keep) {
    const names = { top: "top terms", random: `random terms (${f.draws} draws)`, bottom: "bottom terms" };
    const others = { top: "bottom", random: "random", bottom: "top" };
    return Object.keys(STYLES).map((order) => {
      const list = f[`drop_${keep ? others[order] : order}`][metric];
      const values = keep ? [...list].reverse() : list;
      const x = values.map((_, i) => i);
      if (metric === "kl") return { name: names[order], x, y: values, ...STYLES[order] };
      const of = (key) => values.map((i) => i[key]);
      return { name: names[order], x, y: of("value"), low: of("low"), high: of("high"), ...STYLES[order] };
    });
  }
  function levels(f, metric) {
    const found = [
      ["all terms", f.baseline, "var(--ink-3)", "7 4"],
      ["true MLP output", metric === "kl" ? null : f.original, "var(--s2)", "2 3"],
      ["skip and bias only", f.rest, "var(--s3)", "1 3"],
    ];
    const value = (part) => (metric === "kl" ? part.kl : part.top1.value);
    const text = (v) => (metric === "kl" ? CLT.num(v) : CLT.percent(v));
    return found
      .filter(([, part]) => part && value(part) !== null)
      .map(([title, part, color, dash]) => ({ name: `${title} ${text(value(part))}`, y: value(part), color, dash }));
  }

  CLT.pages.faithfulness = async (_parts, query) => {
    const { evaluation: e, files } = await CLT.load("report");
    const head = [
      h("h1", {}, "Faithfulness"),
      h(
        "p",
        { class: "lead" },
        "A layer's reconstruction is a sum of one term a source layer, of the linear skip and of the decoder bias. If the scores are right, taking out the terms that score high costs more than taking out random ones, and keeping them alone keeps more. Skip and bias stay throughout: what they reach alone is the floor.",
      ),
    ];
    if (!e?.faithfulness?.length) return [head, CLT.missing("faithfulness", "Not measured")];
    const all = e.faithfulness;
    const box = h("div", { class: "stack" });
    const state = {
      n: CLT.whole(query.n, all.length) ?? 0,
      metric: query.metric === "kl" ? "kl" : "top1",
    };
    function draw() {
      const f = all[state.n];
      const log = state.metric === "kl";
      const chart = (keep) =>
        CLT.charts[log ? "logLines" : "lines"]({
          series: curves(f, state.metric, keep),
          levels: levels(f, state.metric),
          yText: log ? (v) => CLT.num(v, 2) : (v) => CLT.percent(v),
          xTicks: Array.from({ length: f.terms + 1 }, (_, i) => i),
          height: 300,
          xLabel: keep ? "terms kept" : "terms taken out",
          label: `${METRICS[state.metric]} by number of terms ${keep ? "kept" : "taken out"}`,
        });
      const what = log ? "KL from the untouched model, on a logarithmic axis," : "Zero-shot top-1";
      const better = (low) => (low ? "Lower" : "Higher");
      box.replaceChildren(
        h(
          "div",
          { class: "grid" },
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "Terms taken out",
              note: `${what} with n of ${f.terms} terms left out. ${better(!log)} is better for the top terms.`,
              files: files[`faithfulness_${state.n}`],
              body: chart(false),
            }),
          ),
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "Terms kept",
              note: `${what} with only n of ${f.terms} terms left in. ${better(log)} is better for the top terms.`,
              body: chart(true),
            }),
          ),
        ),
      );
      CLT.remember("faithfulness", [], state);
    }
    draw();
    const short = (f) => `L${f.layer} ${CLT.tokenName(f.tokens)} · ${f.ranking} · ${f.ablation}`;
    const cell = (i) => CLT.intervalCell(i).t;
    const of = (f, i) => (kept(f) ? [h("span", { class: "ci" }, `${kept(f)} of ${f.terms}: `), cell(i)] : "–");
    const rows = all.map((f) => [
      short(f),
      cell(f.original.top1),
      cell(f.baseline.top1),
      cell(f.rest?.top1),
      cell(f.drop_top.top1[1]),
      cell(f.drop_random.top1[1]),
      of(f, f.drop_bottom.top1[f.terms - kept(f)]),
      of(f, f.drop_random.top1[f.terms - kept(f)]),
      CLT.fixed(f.auc.deletion, 3),
      CLT.fixed(f.auc.insertion, 3),
      CLT.fixed(f.auc.random, 3),
    ]);
    return [
      head,
      h(
        "div",
        { class: "tools" },
        CLT.segments("Metric", Object.entries(METRICS), state.metric, (v) => {
          state.metric = v;
          draw();
        }),
        CLT.select(
          "Shown",
          all.map((f, i) => [i, name(f)]),
          state.n,
          (v) => {
            state.n = Number(v);
            draw();
          },
        ),
      ),
      box,
      h(
        "div",
        { style: { "margin-top": "16px" } },
        CLT.figure({
          title: "All settings",
          note: "Top-1 with 95 % intervals, rounded outward; of random terms: what 95 % of the draws reach. AUC: area under top-1 over the share of terms, taken out (deletion: low is good) or kept (insertion: high is good). Ranked by “image”: each image's own scores; “dataset”: the mean scores. Top terms kept: as many as stated, never all.",
          files: files.faithfulness,
          body: h(
            "div",
            { class: "scroll" },
            CLT.table(
              [
                { name: "Layer, tokens · ranked by · ablation", text: true },
                "true MLP",
                "all terms",
                "skip and bias only",
                "without top 1",
                "without random 1",
                "top terms kept",
                "random terms kept",
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
