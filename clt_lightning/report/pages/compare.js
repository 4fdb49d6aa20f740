// Several runs: what they cost and keep, what their configs differ in, and which of their features are the same.
(() => {
  "use strict";
  const { h, svg } = CLT;
  const interval = (i, show) => (i && i.low !== null && i.low !== undefined ? `${show(i.low)} to ${show(i.high)}` : "");
  const cell = (i, show) =>
    i ? { v: i.value, t: h("span", {}, show(i.value), " ", h("span", { class: "ci" }, interval(i, show))) } : "–";

  // runs that no other one beats on both axes; `better` is 1 where more is better
  function front(points, better) {
    return points.map((p) =>
      points.every((q) => q === p || !(q.x <= p.x && better * q.y >= better * p.y && (q.x < p.x || q.y !== p.y))),
    );
  }

  function pareto({ points, better, yLabel, yText, label }) {
    return CLT.responsive((width) => {
      const height = 300,
        bottom = 42,
        top = 16,
        left = 64,
        right = 20;
      const [x0, x1] = CLT.extent(
        points.map((p) => p.x),
        { pad: 0.12 },
      );
      const [y0, y1] = CLT.extent(
        points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]),
        { pad: 0.12 },
      );
      const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right),
        y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - bottom - top);
      const best = front(points, better);
      const root = svg("svg", {
        class: "chart",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${label}: ${points.map((p) => `${p.name} L0 ${CLT.num(p.x)}, ${yText(p.y)}`).join("; ")}`,
      });
      for (const v of CLT.ticks(y0, y1, 5))
        root.append(
          svg("line", { class: "gridline", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
          svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, yText(v)),
        );
      for (const v of CLT.ticks(x0, x1, Math.max(3, Math.floor(width / 120))))
        root.append(svg("text", { x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, CLT.num(v)));
      root.append(
        svg("line", { class: "axisline", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
        svg(
          "text",
          { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" },
          "L0: active features a token and layer",
        ),
        svg(
          "text",
          { transform: `translate(14 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" },
          yLabel,
        ),
      );
      const chain = points.filter((_, n) => best[n]).sort((a, b) => a.x - b.x);
      if (chain.length > 1)
        root.append(
          svg("polyline", {
            points: chain.map((p) => `${x(p.x)},${y(p.y)}`).join(" "),
            fill: "none",
            stroke: "var(--line-strong)",
            "stroke-dasharray": "4 4",
          }),
        );
      // labels of near points give way to one another
      const taken = [];
      points.forEach((p, n) => {
        const color = CLT.series(n);
        if (p.low !== null && p.low !== undefined)
          root.append(
            svg("line", { x1: x(p.x), x2: x(p.x), y1: y(p.low), y2: y(p.high), stroke: color, "stroke-width": 2 }),
            ...[p.low, p.high].map((v) =>
              svg("line", { x1: x(p.x) - 5, x2: x(p.x) + 5, y1: y(v), y2: y(v), stroke: color, "stroke-width": 2 }),
            ),
          );
        root.append(
          svg(
            "circle",
            {
              cx: x(p.x),
              cy: y(p.y),
              r: 6,
              fill: best[n] ? color : "var(--surface)",
              stroke: color,
              "stroke-width": 2,
            },
            svg("title", {}, `${p.name}: L0 ${CLT.num(p.x)}, ${yText(p.y)}`),
          ),
        );
        const rightwards = x(p.x) < width / 2;
        let at = y(p.y) - 10;
        while (taken.some((t) => Math.abs(t - at) < 14)) at += 14;
        taken.push(at);
        root.append(
          svg(
            "text",
            { class: "value", x: x(p.x) + (rightwards ? 11 : -11), y: at, "text-anchor": rightwards ? "start" : "end" },
            p.name,
          ),
        );
      });
      return [root];
    });
  }

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

  function features(match, data) {
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
  }

  function examples(match, data, c, sprites, current) {
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
                const i = c && mine >= 0 ? layer * c.size + mine : -1;
                return h(
                  "li",
                  {},
                  i >= 0 && c.image[i] >= 0
                    ? CLT.thumb(sprites, c.image[i], { mode: "image", alt: "its strongest image" })
                    : h("span", { class: "thumb" }),
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
        ...[features(match, data), examples(match, data, c, sprites, current)].flat(Infinity).filter(Boolean),
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
                body: pareto({
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
                body: pareto({
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
