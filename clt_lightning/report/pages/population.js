// The held-out number against what the training split makes likely.
(() => {
  "use strict";
  const { h, svg } = CLT;
  const NAMES = { fvu: "FVU", l0: "L0", outliers: "outlier images", kl: "logit KL", accuracy_drop: "accuracy lost" };
  const text = (c, v) =>
    c.discrepancy === "accuracy_drop"
      ? `${CLT.fixed(100 * v, 2)} pp`
      : c.discrepancy === "outliers"
        ? CLT.percent(v)
        : CLT.num(v);
  // more or fewer active features than in training are a difference; of the others only what is worse
  const chance = (c) => (c.discrepancy === "l0" ? c.p_two_sided : c.p_value);
  const histogram = (c, height = 120) =>
    CLT.responsive((width) => {
      const values = c.resampled,
        [low, high] = CLT.extent([...values, c.held_out, c.train]),
        bins = 36,
        counts = new Array(bins).fill(0);
      for (const v of values) counts[Math.min(bins - 1, Math.floor(((v - low) / (high - low)) * bins))]++;
      const f = CLT.charts.frame({
        width,
        height,
        left: 12,
        bottom: 28,
        xs: { domain: [low, high], ticks: CLT.ticks(low, high, 5) },
        ys: { domain: [0, Math.max(...counts, 1)], ticks: [] },
        xText: (v) => text(c, v),
        yText: String,
        label: `${NAMES[c.discrepancy]}: held out ${text(c, c.held_out)}, p = ${CLT.num(chance(c))}`,
      });
      counts.forEach((n, i) => {
        const x0 = f.x(low + (i / bins) * (high - low)),
          x1 = f.x(low + ((i + 1) / bins) * (high - low));
        f.root.append(
          svg("rect", {
            x: x0 + 0.5,
            width: x1 - x0 - 1,
            y: f.y(n),
            height: height - f.bottom - f.y(n),
            fill: "var(--line-strong)",
          }),
        );
      });
      f.root.append(
        svg("line", {
          x1: f.x(c.held_out),
          x2: f.x(c.held_out),
          y1: 4,
          y2: height - f.bottom,
          stroke: "var(--s1)",
          "stroke-width": 2.5,
        }),
      );
      return [f.root];
    });
  CLT.pages.population = async () => {
    const { evaluation: e, files } = await CLT.load("report");
    const head = [
      h("h1", {}, "Generalisation"),
      h(
        "p",
        { class: "lead" },
        "Is the held-out split worse than chance allows? Grey: each discrepancy on resamples of the training split, as large as the held-out one. Line: the held-out value. A small p says that the transcoder does not generalise there (population check of Moran, Blei and Ranganath, 2019).",
      ),
    ];
    if (!e?.population) return [head, CLT.missing("population", "Not measured")];
    const where = (c) =>
      `${c.tokens ? CLT.tokenName(c.tokens) : ""}${c.first === null ? "" : `, layers ${c.first}→${c.last} replaced`}`;
    return [
      head,
      h(
        "div",
        { class: "grid" },
        e.population.checks.map((c) =>
          h(
            "section",
            { class: "card w6" },
            h(
              "header",
              {},
              h("h2", {}, NAMES[c.discrepancy] || c.discrepancy),
              h(
                "span",
                { class: `pill ${chance(c) < 0.05 ? "warn" : "good"}` },
                `p = ${CLT.num(chance(c), 2)}${chance(c) >= 0.05 ? " · within chance" : c.discrepancy === "l0" ? " · not as in training" : " · worse than chance allows"}`,
              ),
            ),
            h(
              "p",
              { class: "note" },
              `${where(c)}. ${c.discrepancy === "outliers" ? "Images that are rebuilt worse than 99 % of the training images. " : ""}Held out ${text(c, c.held_out)}, training ${text(c, c.train)} (95 %: ${text(c, c.quantiles["0.025"])} to ${text(c, c.quantiles["0.975"])}).`,
            ),
            histogram(c),
          ),
        ),
      ),
      h(
        "p",
        { class: "note" },
        `${CLT.count(e.population.resamples)} resamples of ${CLT.count(e.population.train_images)} training images. `,
        CLT.downloads(files.population),
      ),
    ];
  };
})();
