// Several runs: what they cost and keep, what their configs differ in, and which of their features are the same.
(() => {
  "use strict";
  const { h } = CLT;
  const interval = (i, show) => (i && i.low !== null && i.low !== undefined ? `${show(i.low)} to ${show(i.high)}` : "");
  const cell = (i, show) =>
    i ? { v: i.value, t: h("span", {}, show(i.value), " ", h("span", { class: "ci" }, interval(i, show))) } : "–";

  function numbers(data) {
    const percent = (v) => CLT.percent(v),
      out = [];
    for (const [task, name] of [
      ["zero_shot", "top-1"],
      ["multilabel", "mAP"],
    ])
      if (data.runs.some((r) => r.arms[task])) out.push([task, name]);
    const heads = [
      { name: "Run", text: true },
      "L0",
      "FVU",
      "Dead",
      ...out.flatMap(([, name]) => [`Replaced ${name}`, `Original ${name}`, "Lost"]),
      "Features",
      { name: "Form", text: true },
      "Images",
    ];
    return CLT.table(
      heads,
      data.runs.map((r, n) => [
        { v: r.title, t: h("span", {}, h("i", { class: "swatch", style: { background: CLT.series(n) } }), r.title) },
        { v: r.l0, t: CLT.num(r.l0) },
        cell(r.fvu, percent),
        { v: r.dead, t: CLT.percent(r.dead) },
        ...out.flatMap(([task]) => {
          const a = r.arms[task] || {};
          return [cell(a.replaced, percent), cell(a.original, percent), cell(a.drop, percent)];
        }),
        { v: r.features, t: r.features ? `${r.layers} × ${CLT.count(r.features)}` : "–" },
        [r.activation, r.topology, r.skip ? "skip" : ""].filter(Boolean).join(", "),
        { v: r.images, t: CLT.count(r.images) },
      ]),
    );
  }

  CLT.pages.compare = async (_, query) => {
    const data = await CLT.load("compare");
    const head = h("h1", {}, "Compare");
    if (!data) return [head, CLT.missing("compare", "This report is of one run")];
    const { current } = CLT.get("runs");
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    const points = (y) =>
      data.runs
        .map((r, n) => ({ name: r.title, x: r.l0, n, ...y(r) }))
        .filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y));
    const spread = (i) => ({ y: i?.value, low: i?.low, high: i?.high });
    const accuracy = points((r) => spread((r.arms.zero_shot || r.arms.multilabel)?.replaced)),
      fvu = points((r) => spread(r.fvu));
    const task = data.runs.some((r) => r.arms.zero_shot) ? "top-1" : "mAP";
    const shown = h("div", { class: "stack" });
    let chosen = Math.min(Number(query.pair) || 0, Math.max(0, data.matches.length - 1));
    const draw = () => {
      const match = data.matches[chosen];
      if (!match) return;
      shown.replaceChildren(
        ...[CLT.matchedFeatures(match, data), CLT.matchedExamples(match, data, c, sprites, current)]
          .flat(Infinity)
          .filter(Boolean),
      );
    };
    draw();
    const percent = (v) => CLT.percent(v);
    return [
      head,
      h(
        "p",
        { class: "lead" },
        `${data.runs.length} runs on the ${data.split} split. The run above chooses whose pages are shown.`,
      ),
      h(
        "div",
        { class: "grid" },
        accuracy.length
          ? h(
              "div",
              { class: "w6" },
              CLT.figure({
                title: `Replaced ${task} by L0`,
                note: "All MLPs replaced; higher is better, and so is further left. Filled: no other run is better in both. Whiskers: 95 % over images.",
                body: CLT.charts.pareto({
                  points: accuracy,
                  better: 1,
                  yLabel: `${task}, all MLPs replaced`,
                  yText: percent,
                  label: "Replaced accuracy by L0",
                }),
              }),
            )
          : null,
        fvu.length
          ? h(
              "div",
              { class: "w6" },
              CLT.figure({
                title: "Unexplained variance by L0",
                note: "FVU, mean over layers; lower is better. Whiskers: the spread that resamples of the training split have, as many images as were evaluated.",
                body: CLT.charts.pareto({
                  points: fvu,
                  better: -1,
                  yLabel: "FVU",
                  yText: percent,
                  label: "Unexplained variance by L0",
                }),
              }),
            )
          : null,
      ),
      h(
        "div",
        { class: "stack", style: { "margin-top": "var(--gap)" } },
        CLT.figure({
          title: "Numbers",
          body: h(
            "div",
            {},
            h(
              "div",
              { class: "scroll", tabindex: 0, role: "group", "aria-label": "Numbers of the runs" },
              numbers(data),
            ),
            data.accuracy.length
              ? h(
                  "ul",
                  { class: "note" },
                  data.accuracy.map((d) =>
                    h(
                      "li",
                      {},
                      `${data.runs[d.b].title} minus ${data.runs[d.a].title}, replaced top-1 on the same ${CLT.count(d.images)} images: ${CLT.fixed(100 * d.difference.value, 1)} points (95 %: ${CLT.fixed(100 * d.difference.low, 1)} to ${CLT.fixed(100 * d.difference.high, 1)})`,
                    ),
                  ),
                )
              : null,
          ),
        }),
        CLT.figure({
          title: "What their configs differ in",
          body: data.config.length
            ? h(
                "div",
                { class: "scroll", tabindex: 0, role: "group", "aria-label": "Config keys that differ" },
                CLT.table(
                  [{ name: "Key", text: true }, ...data.runs.map((r) => ({ name: r.title, text: true }))],
                  data.config.map((row) => [
                    h("code", {}, row.key),
                    ...row.values.map((v) => (v === null ? h("span", { class: "dim" }, "not set") : v)),
                  ]),
                  { sortable: false },
                ),
              )
            : CLT.empty("Their configs are the same."),
        }),
        data.matches.length > 1
          ? h(
              "div",
              { class: "tools" },
              CLT.select(
                "Features of",
                data.matches.map((m, n) => [n, `${data.runs[m.a].title} and ${data.runs[m.b].title}`]),
                chosen,
                (v) => {
                  chosen = Number(v);
                  CLT.remember("compare", [], { pair: v });
                  draw();
                },
              ),
            )
          : null,
        shown,
      ),
    ];
  };
})();
