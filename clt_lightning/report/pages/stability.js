// How many features of several runs are found again, against chance; which ones; and what the others are as a group.
(() => {
  "use strict";
  const { h } = CLT;
  const two = (v) => CLT.fixed(v, 2);
  const cell = (v, show = two) => ({ v, t: show(v) });
  const percent = (v) => CLT.percent(v);
  const scroll = (label, table) =>
    h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, table);
  const mean = (values) => {
    const known = values.filter((v) => v !== null && v !== undefined);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  };
  const differ = (names) => (names === null ? "not known" : names.join(", ") || "nothing");

  function pairs(data) {
    const row = (name, what, numbers) => [
      name,
      what,
      cell(numbers.kept ?? null, percent),
      ...["mcc", "mmcs"].flatMap((m) => ["decoder", "encoder", "both"].map((k) => cell(numbers[`${m}_${k}`] ?? null))),
    ];
    const rows = data.pairs.map((p) => row(`${data.runs[p.a].title} · ${data.runs[p.b].title}`, differ(p.differ), p));
    if (data.pairs.length > 1) {
      const pick = (key) => Object.fromEntries(Object.entries(data.mean).map(([name, s]) => [name, s[key]]));
      rows.push(row("Mean", `${data.pairs.length} pairs`, pick("value")));
      if (data.mean.kept.low !== null) {
        rows.push(row("95 %, from", "over runs", pick("low")));
        rows.push(row("95 %, to", "over runs", pick("high")));
      }
    }
    for (const [name, text] of [
      ["untrained", "Chance: untrained"],
      ["mixed", "Chance: mixed rows"],
    ])
      rows.push(
        row(text, "", {
          mcc_both: mean(data.pairs.map((p) => p.null[name].mcc_both)),
          mmcs_both: mean(data.pairs.map((p) => p.null[name].mmcs_both)),
        }),
      );
    return CLT.table(
      [
        { name: "Runs", text: true },
        { name: "They differ in", text: true },
        "kept",
        ...["MCC", "MMCS"].flatMap((m) => ["writes", "reads", "both"].map((k) => `${m} ${k}`)),
      ],
      rows,
      { sortable: false },
    );
  }

  // groups of several pairs and sides together, each weighted by its features
  function merged(groups) {
    const features = groups.reduce((t, g) => t + g.features, 0);
    const of = (key) =>
      features ? groups.reduce((t, g) => t + (g.features ? g[key] * g.features : 0), 0) / features : null;
    return { features, kept: groups.reduce((t, g) => t + g.kept, 0), both: of("both") };
  }

  function rates(data) {
    const bins = new Map();
    for (const pair of data.pairs)
      for (const side of ["a", "b"])
        for (const bin of pair.rates[side]?.bins || []) {
          const key = bin.low.toPrecision(6);
          bins.set(key, [...(bins.get(key) || []), bin]);
        }
    const items = [...bins.values()].sort((p, q) => p[0].low - q[0].low);
    if (!items.length) return null;
    return CLT.figure({
      title: "By how often they fire",
      note: "Share of features that are kept, of both sides of every pair, by the share of tokens on which a feature is active, in decades.",
      body: CLT.charts.bars({
        items: items.map((bin) => {
          const all = merged(bin);
          return {
            name: `${CLT.num(100 * bin[0].low, 1)}–${CLT.num(100 * bin[0].high, 1)} %`,
            value: all.kept / all.features,
            text: `${CLT.percent(all.kept / all.features, 0)} of ${CLT.count(all.features)}, cosine ${two(all.both)}`,
          };
        }),
        show: (v) => CLT.percent(v, 0),
        label: "Kept features by firing rate",
        nameWidth: 96,
      }),
    });
  }

  function groups(data) {
    const rows = data.pairs[0].layers.flatMap((l, n) =>
      ["decoder", "encoder"].map((kind) => {
        const parts = data.pairs.map((p) => p.layers[n].subspaces[kind]);
        const of = (name, key) => mean(parts.map((part) => part[name]?.[key]));
        return [
          { v: l.layer, t: `L${l.layer} ${kind === "decoder" ? "writes" : "reads"}` },
          cell(of("unstable", "dimension"), (v) =>
            v === null ? "–" : `${CLT.count(Math.round(v))} of ${of("unstable", "width")}`,
          ),
          cell(of("unstable", "overlap")),
          cell(of("unstable", "chance")),
          cell(of("control", "overlap")),
          cell(of("unstable", "explained")),
          cell(of("unstable", "single")),
        ];
      }),
    );
    return CLT.figure({
      title: "What is not found again, as a group",
      note: "The subspaces that hold 90 % of the features that are not kept, of either run: mean squared cosine of their principal angles (1: the same subspace), that of two random subspaces of as many dimensions, and that with the other run's kept features. Beside it how much of such a feature lies in the other run's group, and in the nearest single feature of it.",
      body: scroll(
        "Subspaces by layer",
        CLT.table(["Layer", "dimensions", "overlap", "chance", "with kept", "in the group", "in the nearest"], rows, {
          sortable: false,
        }),
      ),
    });
  }

  function anchors(data) {
    return against(
      data.pairs.flatMap((p) => [p.anchors.a, p.anchors.b]),
      "Anchors",
      "Features that write to one layer against those that write to several, in layers from which both are possible.",
      ["one layer", "several"],
    );
  }

  function coordinates(data) {
    return against(
      data.pairs.flatMap((p) => (p.coordinates ? [p.coordinates.a, p.coordinates.b] : [])),
      "Coordinates of their own",
      "Features that alone write to some channels of a layer's output, against those without any.",
      ["some of its own", "none of its own"],
    );
  }

  function against(sides, title, note, names) {
    const known = sides.filter(Boolean);
    const [one, several] = [merged(known.map((k) => k.anchors)), merged(known.map((k) => k.others))];
    if (!one.features) return null;
    const equal = mean(known.map((k) => k.at_equal_rates.value));
    return CLT.figure({
      title,
      note: `${note}${equal === null ? "" : ` At equal firing rates the first are kept ${CLT.fixed(100 * equal, 1)} points more often.`}`,
      body: scroll(
        title,
        CLT.table(
          [{ name: "Writes to", text: true }, "features", "kept", "cosine"],
          [
            [names[0], one],
            [names[1], several],
          ].map(([name, g]) => [
            name,
            cell(g.features, CLT.count),
            cell(g.features ? g.kept / g.features : null, percent),
            cell(g.both),
          ]),
          { sortable: false },
        ),
      ),
    });
  }

  function found(data) {
    if (data.runs.length < 3) return null;
    return CLT.figure({
      title: "In how many of the other runs",
      note: "Features that fire, by the number of other runs in which they are kept.",
      body: scroll(
        "Features by the number of runs",
        CLT.table(
          [{ name: "Run", text: true }, ...data.runs.map((_, n) => `in ${n}`)],
          data.runs.map((r) => [r.title, ...r.found_in.map((n) => cell(n, CLT.count))]),
          { sortable: false },
        ),
      ),
    });
  }

  CLT.pages.stability = async () => {
    const data = await CLT.load("stability");
    const head = h("h1", {}, "Stability");
    if (!data) {
      const several = CLT.get("runs").runs.length > 1;
      return [
        head,
        several
          ? CLT.empty("No two of these runs can be compared: the page Compare says why.")
          : CLT.missing("stability", "This report is of one run"),
      ];
    }
    return [
      head,
      h(
        "p",
        { class: "lead" },
        `Which features ${data.runs.length} runs have in common. What differs between two runs is what their features depend on: the data order alone is as alike as runs get.`,
      ),
      h(
        "div",
        { class: "stack" },
        CLT.figure({
          title: "How alike, against chance",
          note: "Kept: each other's nearest, by what they write and by what they read, of all features that fire. MCC: mean cosine of a one-to-one matching (PW-MCC). MMCS: of each feature's nearest. Both: the smaller cosine of the two.",
          body: scroll("Pairs of runs", pairs(data)),
        }),
        found(data),
        rates(data),
        groups(data),
        anchors(data),
        coordinates(data),
      ),
    ];
  };
})();
