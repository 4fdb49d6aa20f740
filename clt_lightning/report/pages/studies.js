// Several data sets: what each costs, how many features they share, and the features that one uses more than the others.
(() => {
  "use strict";
  const { h } = CLT;
  const scroll = (label, table) =>
    h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, table);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const cell = (v, show) => ({ v, t: show(v) });
  const layerNames = (data) => data.sets[0].fvu.map((_, n) => `L${n}`);

  const sets = (data) =>
    CLT.table(
      [
        { name: "Set", text: true },
        "images",
        "L0",
        "FVU",
        "threshold",
        "own features",
        ...layerNames(data).map((n) => `FVU ${n}`),
      ],
      data.sets.map((s) => [
        s.name,
        cell(s.images, CLT.count),
        cell(mean(s.l0), (v) => CLT.fixed(v, 2)),
        cell(mean(s.fvu), (v) => CLT.fixed(v, 4)),
        cell(s.threshold, (v) => CLT.num(v)),
        cell(sum(s.specific), CLT.count),
        ...s.fvu.map((v) => cell(v, (value) => CLT.fixed(value, 4))),
      ]),
      { sortable: false },
    );

  const kinds = (data) =>
    CLT.table(
      [{ name: "Layer", text: true }, ...Object.keys(data.kinds)],
      layerNames(data).map((name, n) => [
        name,
        ...Object.values(data.kinds).map((counts) => cell(counts[n], CLT.count)),
      ]),
      { sortable: false },
    );

  const rate = (f, n) => ({
    v: f.rates[n],
    t: `${CLT.percent(f.rates[n])} (${CLT.percent(f.low[n])} to ${CLT.percent(f.high[n])})`,
  });

  const own = (data, set) =>
    CLT.figure({
      title: `More often in ${set.name}`,
      note: `Share of images on which a feature is active, with ${CLT.percent(data.level, 0)} intervals. Explained: how far the set tells whether an image has the feature, of 1; the largest first. Entropy: of the rates, 0 for a feature of one set, 1 for one that all use alike.`,
      body: set.distinctive.length
        ? scroll(
            `Features of ${set.name}`,
            CLT.table(
              [
                { name: "Feature", text: true },
                { name: "kind", text: true },
                ...data.sets.map((s) => s.name),
                "explained",
                "entropy",
              ],
              set.distinctive
                .slice(0, 20)
                .map((f) => [
                  h("a", { href: CLT.href("feature", [f.layer, f.feature]) }, `L${f.layer} · ${f.feature}`),
                  f.kind,
                  ...data.sets.map((_, n) => rate(f, n)),
                  cell(f.explained, (v) => CLT.fixed(v, 2)),
                  cell(f.entropy, (v) => CLT.fixed(v, 2)),
                ]),
              { sortable: false },
            ),
          )
        : CLT.empty("No feature is used more often here than in every other set."),
    });

  CLT.load("studies").then((data) => data && CLT.navigation("studies"));

  CLT.pages.studies = async () => {
    const data = await CLT.load("studies");
    const head = h("h1", {}, "Studies");
    if (!data) return [head, CLT.missing("studies", "Several data sets were not compared")];
    return [
      head,
      h(
        "p",
        { class: "lead" },
        `How ${data.sets.length} data sets use the features, on their ${data.split} splits. The unit is the image; tests control false discoveries at ${CLT.percent(data.fdr, 0)}.`,
      ),
      h(
        "div",
        { class: "stack" },
        CLT.figure({
          title: "The sets",
          note: "L0 and FVU are means over layers, FVU against the set's own mean. Threshold: what codes must exceed for the L0 that all sets have together; where these differ, one threshold for all gives the sets different L0, and all rates of one are higher.",
          body: scroll("The sets", sets(data)),
        }),
        CLT.figure({
          title: "Shared, uneven, one set's own",
          note: `Uneven: the rates differ. Specific: and one set has ${CLT.percent(data.own, 0)} of the use. Shared: no difference was found, of which few images may be the reason. Resolution and class mix make features uneven as well.`,
          body: scroll("Features by layer", kinds(data)),
        }),
        data.sets.map((set) => own(data, set)),
      ),
    ];
  };
})();
