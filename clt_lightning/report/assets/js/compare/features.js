// Which features of two runs are the same, layer by layer, against chance; and some of each kind.
(() => {
  "use strict";
  const { h } = CLT;
  function stack(parts, total) {
    return h(
      "div",
      { class: "stacked", role: "img", "aria-label": parts.map(([name, n]) => `${name} ${n}`).join(", ") },
      parts.map(([name, n]) =>
        n ? h("i", { class: `st-${name}`, style: { width: `${(100 * n) / total}%` }, title: `${name}: ${n}` }) : null,
      ),
    );
  }
  const living = (side) => side.kept + side.split + side.new;

  CLT.matchedFeatures = (match, data) => {
    const [a, b] = [data.runs[match.a].title, data.runs[match.b].title];
    if (match.said) return CLT.figure({ title: "Features", body: CLT.empty(match.said) });
    const sum = (side, state) => match.layers.reduce((t, l) => t + l[side][state], 0);
    const total = (side) => match.layers.reduce((t, l) => t + living(l[side]), 0);
    const share = (n, of) => (of ? CLT.percent(n / of, 0) : "–");
    const limits = [...new Set(match.layers.map((l) => `${CLT.num(l.kept)} and ${CLT.num(l.near)}`))];
    const rows = match.layers.map((l) => [
      { v: l.layer, t: `L${l.layer}` },
      {
        v: l.a.kept,
        t: stack(
          [
            ["kept", l.a.kept],
            ["split", l.a.split],
            ["new", l.a.new],
          ],
          Math.max(1, living(l.a)),
        ),
      },
      {
        v: l.b.kept,
        t: stack(
          [
            ["kept", l.b.kept],
            ["split", l.b.split],
            ["new", l.b.new],
          ],
          Math.max(1, living(l.b)),
        ),
      },
      { v: l.a.kept, t: CLT.count(l.a.kept) },
      { v: l.a.new, t: CLT.count(l.a.new) },
      { v: l.b.split, t: CLT.count(l.b.split) },
      { v: l.b.new, t: CLT.count(l.b.new) },
    ]);
    const similar = match.layers.map((l) => [
      { v: l.layer, t: `L${l.layer}` },
      ...["decoder", "encoder", "both"].flatMap((kind) => [
        { v: l.mmcs[kind], t: CLT.fixed(l.mmcs[kind], 2) },
        { v: l.null.mixed?.[kind], t: h("span", { class: "ci" }, CLT.fixed(l.null.mixed?.[kind], 2)) },
      ]),
      { v: l.null.untrained?.both, t: h("span", { class: "ci" }, CLT.fixed(l.null.untrained?.both, 2)) },
      ...["decoder", "encoder", "both"].map((kind) => ({ v: l.mcc[kind], t: CLT.fixed(l.mcc[kind], 2) })),
    ]);
    return [
      CLT.figure({
        title: `Features: ${a} and ${b}`,
        note: [
          `A feature is kept where each is the other's nearest and the smaller of two cosines, of what they write over all layers and of what they read, reaches a limit; near (“split”) where it reaches a lower one but the partner has a nearer. Limits by layer: ${limits.join("; ")}; none lies below what 99 % of the features reach by chance.`,
        ],
        body: h(
          "div",
          {},
          h(
            "p",
            {},
            h("b", {}, share(sum("a", "kept"), total("a"))),
            ` of ${a}'s ${CLT.count(total("a"))} live features are kept in ${b}; `,
            h("b", {}, share(sum("b", "new"), total("b"))),
            ` of ${b}'s ${CLT.count(total("b"))} are new.`,
          ),
          h(
            "ul",
            { class: "legend" },
            [
              ["kept", "kept"],
              ["split", "near to one that has a nearer partner"],
              ["new", "nothing like it"],
            ].map(([state, text]) => h("li", {}, h("i", { class: `box st-${state}` }), text)),
          ),
          h(
            "div",
            { class: "scroll", tabindex: 0, role: "group", "aria-label": "Matched features by layer" },
            CLT.table(
              [
                "Layer",
                { name: a, text: true },
                { name: b, text: true },
                "kept",
                `gone from ${a}`,
                `split in ${b}`,
                `new in ${b}`,
              ],
              rows,
            ),
          ),
        ),
      }),
      CLT.figure({
        title: "How alike, against chance",
        note: "Mean over features of the largest cosine with any of the other run (MMCS), and the mean over a one-to-one matching (PW-MCC, largest cosines first). By chance: the partner's rows are random mixtures of its own (grey beside each), or random directions (untrained).",
        body: h(
          "div",
          { class: "scroll", tabindex: 0, role: "group", "aria-label": "Similarity by layer" },
          CLT.table(
            [
              "Layer",
              "writes",
              "chance",
              "reads",
              "chance",
              "both",
              "chance",
              "untrained",
              "MCC writes",
              "MCC reads",
              "MCC both",
            ],
            similar,
          ),
        ),
      }),
      match.rates.length
        ? CLT.figure({
            title: `Which of ${a}'s features are kept, by how often they fire`,
            note: "Share of tokens on which a feature is active, in decades. Rare features are found again less often.",
            body: CLT.charts.bars({
              items: match.rates.map((r) => ({
                name: `${CLT.num(100 * r.low, 1)}–${CLT.num(100 * r.high, 1)} %`,
                value: r.features ? r.kept / r.features : 0,
                text: `${CLT.percent(r.kept / r.features, 0)} of ${CLT.count(r.features)}`,
              })),
              show: (v) => CLT.percent(v, 0),
              label: "Kept features by firing rate",
              nameWidth: 96,
            }),
          })
        : null,
    ];
  };

  CLT.matchedExamples = (match, data, c, sprites, current) => {
    if (match.said) return null;
    const sides = { kept: match.a, gone: match.a, split: match.b, new: match.b };
    const others = { kept: match.b, gone: match.b, split: match.a, new: match.a };
    const titles = {
      kept: "Kept, the surest first",
      gone: `Gone from ${data.runs[match.a].title}, the clearest first`,
      split: `Split in ${data.runs[match.b].title}: near to a feature that has a nearer one`,
      new: `New in ${data.runs[match.b].title}, the clearest first`,
    };
    const link = (run, layer, feature) =>
      h(
        "a",
        {
          href:
            run === current
              ? CLT.href("feature", [layer, feature])
              : `${data.runs[run].href}${CLT.href("feature", [layer, feature])}`,
        },
        `L${layer} · ${feature}`,
      );
    return Object.entries(match.examples).map(([kind, rows]) =>
      CLT.figure({
        title: titles[kind],
        body: rows.length
          ? h(
              "ul",
              { class: "pairs" },
              rows.map(([layer, feature, partner, writes, reads]) => {
                const mine = sides[kind] === current ? feature : others[kind] === current ? partner : -1;
                return h(
                  "li",
                  {},
                  mine >= 0 ? CLT.strongest(c, sprites, layer, mine) : h("span", { class: "thumb" }),
                  h(
                    "span",
                    {},
                    link(sides[kind], layer, feature),
                    partner >= 0
                      ? [
                          kind === "kept" ? " = " : " · nearest ",
                          link(others[kind], layer, partner),
                          h("span", { class: "ci" }, ` ${CLT.fixed(writes, 2)} / ${CLT.fixed(reads, 2)}`),
                        ]
                      : null,
                  ),
                );
              }),
            )
          : CLT.empty("None."),
      }),
    );
  };
})();
