// Layers x token sets, one strip a metric.
(() => {
  "use strict";
  const { h } = CLT;
  const METRICS = {
    fvu: [
      "Fraction of variance unexplained",
      "FVU: squared error over the variance around the mean of every dimension. 0 is perfect; predicting the mean gives 1.",
      (v) => CLT.fixed(v, 3),
      true,
    ],
    r2: ["R²", "1 − FVU, with a mean for every dimension.", (v) => CLT.fixed(v, 3), false],
    cosine: ["Cosine", "Mean cosine between MLP output and reconstruction.", (v) => CLT.fixed(v, 3), false],
    mse: ["Mean squared error", "Mean over tokens and dimensions, in the backbone's units.", (v) => CLT.num(v), true],
    l0: ["Active features", "L0: mean number of non-zero codes per token.", (v) => CLT.num(v), true],
    dead: ["Dead features", "Share of the features that no token of the split activates.", (v) => CLT.percent(v), true],
  };
  const GOOD_IS_HIGH = ["r2", "cosine"],
    SHARES = ["fvu", "r2", "cosine", "dead"];
  CLT.pages.reconstruction = async (_parts, query) => {
    const { evaluation: e, files } = await CLT.load("report");
    const head = [
      h("h1", {}, "Reconstruction"),
      h(
        "p",
        { class: "lead" },
        "How well the codes rebuild what each layer's MLP adds to the stream. Early [CLS] tokens are nearly constant over images, so look at the token sets apart.",
      ),
    ];
    if (!e?.reconstruction) return [head, CLT.missing("reconstruction", "Not measured")];
    const r = e.reconstruction,
      layers = Array.from({ length: e.layers }, (_, i) => i),
      known = Object.keys(METRICS).filter((m) => r[m]);
    const strip = h("div"),
      lines = h("div");
    function draw(metric) {
      const [name, text, show] = METRICS[metric],
        sets = e.token_sets.filter((s) => r[metric][s]);
      const values = sets.map((s) => [...r[metric][s].layers, r[metric][s].mean]);
      // stronger is worse; a good run must not look alarming, so the scale does not end below 0.3
      const worse = GOOD_IS_HIGH.includes(metric) ? (v) => 1 - v : (v) => v;
      const top = Math.max(
        SHARES.includes(metric) ? 0.3 : 1e-12,
        ...values
          .flat()
          .filter((v) => v !== null)
          .map(worse),
      );
      strip.replaceChildren(
        CLT.figure({
          title: name,
          note: `${text}${metric === "l0" ? "" : " Stronger colour is worse."}`,
          files: files.reconstruction?.[metric],
          body: h(
            "div",
            { class: "scroll" },
            CLT.charts.heatmap({
              rows: sets.map((s) => CLT.tokenName(s).replace(" tokens", "")),
              columns: [...layers.map((l) => `L${l}`), "mean"],
              values,
              scale: (v) => worse(v) / top,
              show,
              label: `${name} by token set and layer`,
              title: (a, b, v) => `${sets[a]}, ${b < e.layers ? `layer ${b}` : "mean over layers"}: ${v}`,
            }),
          ),
        }),
      );
      lines.replaceChildren(
        CLT.figure({
          title: `${name} by layer`,
          body: CLT.charts.lines({
            series: sets.map((s) => ({ name: CLT.tokenName(s), x: layers, y: r[metric][s].layers })),
            xLabel: "layer",
            yLabel: metric === "r2" ? "R²" : metric.toUpperCase(),
            xTicks: layers,
            yText: show,
            yZero: METRICS[metric][3],
            label: `${name} by layer`,
            height: 280,
          }),
        }),
      );
      CLT.remember("reconstruction", [], { metric });
    }
    const start = known.includes(query.metric) ? query.metric : known[0];
    draw(start);
    return [
      head,
      h(
        "div",
        { class: "tools" },
        CLT.segments(
          "Metric",
          known.map((m) => [m, m === "r2" ? "R²" : m === "mse" || m === "fvu" || m === "l0" ? m.toUpperCase() : m]),
          start,
          draw,
        ),
      ),
      h("div", { class: "stack" }, strip, lines),
    ];
  };
})();
