// What is left of CLIP with its MLPs replaced: windows up to the last layer, single layers, controls.
(() => {
  "use strict";
  const { h } = CLT;
  const TASKS = {
    zero_shot: { top1: "top-1", top5: "top-5", per_class_recall: "class recall", kl: "KL", drop: "drop" },
    multilabel: { map: "mAP", top1_hit: "top-1 hit", top1_largest: "top-1 largest" },
    retrieval: {
      image_to_text_r1: "image→text R@1",
      image_to_text_r5: "image→text R@5",
      text_to_image_r1: "text→image R@1",
      text_to_image_r5: "text→image R@5",
    },
  };
  const TASK_NAMES = {
    zero_shot: "Zero-shot classification",
    multilabel: "Several labels an image",
    retrieval: "Captions",
  };
  const KINDS = {
    original: "original CLIP",
    replaced: "replaced (cascaded)",
    true_x: "fed with the true x",
    mean_ablated: "mean-ablated MLPs",
    zero_ablated: "zero-ablated MLPs",
    random: "random features",
    skip_alone: "linear skip alone",
    features_alone: "features alone",
    attention: "every attention replaced",
    with_attention: "every MLP and every attention",
    attention_mean: "every attention at its mean",
  };
  const OF_ATTENTION = ["attention", "with_attention", "attention_mean"];
  const STYLE = {
    replaced: { color: "var(--s0)" },
    true_x: { color: "var(--s2)", dash: "6 4" },
    mean_ablated: { color: "var(--s1)" },
    zero_ablated: { color: "var(--s3)", dash: "2 4" },
    random: { color: "var(--s5)", dash: "1 4" },
    skip_alone: { color: "var(--s4)", dash: "8 3" },
    features_alone: { color: "var(--ink)", dash: "8 3 2 3" },
  };
  const show = (metric, v) =>
    metric === "kl" ? CLT.num(v) : metric === "drop" ? `${CLT.fixed(100 * v, 1)} pp` : CLT.percent(v);
  const cell = (metric, i) =>
    CLT.intervalCell(i, metric === "kl" ? "number" : metric === "drop" ? "points" : "percent");

  // sparse attention: its own arms beside the MLPs', and how well each layer is rebuilt
  function attention(e) {
    if (!e?.attention) return [];
    const whole = (a) => a.kind === "replaced" && a.first === 0 && a.last === e.layers - 1 && a.tokens === "all";
    const arms = (e.zero_shot?.arms || []).filter(
      (a) => a.kind === "original" || whole(a) || OF_ATTENTION.includes(a.kind),
    );
    const { fvu, l0, dead, heads } = e.attention;
    const number = (v, digits) => (v === null || v === undefined ? "" : CLT.fixed(v, digits));
    const share = (v) => (v === null || v === undefined ? "" : CLT.percent(v, 0));
    const rows = fvu.all.layers.map((v, l) => [
      { v: l, t: `${l}` },
      { v, t: number(v, 3) },
      { v: l0.all.layers[l], t: number(l0.all.layers[l], 1) },
      { v: dead.all.layers[l], t: share(dead.all.layers[l]) },
      ...(heads
        ? [
            CLT.count(heads[l].units),
            number(heads[l].median, 2),
            { v: heads[l].several, t: share(heads[l].several) },
            { v: heads[l].own, t: share(heads[l].own) },
          ]
        : []),
    ]);
    const of = heads ? ["units that explain", "heads (median)", "spread over two or more", "own head's share"] : [];
    return [
      CLT.figure({
        title: "Attention replaced as well",
        note: "Sparse units, or features of an autoencoder, in the place of every attention layer, alone and beside the transcoder; every attention at its mean at each position is what they must beat. All tokens, cascaded.",
        body: arms.length
          ? h(
              "div",
              { class: "scroll" },
              CLT.table(
                [{ name: "In the model's place", text: true }, "top-1", "points lost", "KL"],
                arms.map((a) => [
                  a.kind === "replaced" ? "every MLP" : KINDS[a.kind],
                  cell("top1", a.top1),
                  a.kind === "original" ? "" : cell("drop", a.drop),
                  a.kind === "original" ? "" : cell("kl", a.kl),
                ]),
                { strong: (row) => row[0] === KINDS.with_attention },
              ),
            )
          : CLT.empty("No accuracy was measured: this needs class names and labels."),
      }),
      CLT.figure({
        title: "Units of attention by layer",
        note: "FVU of what attention adds, on the untouched model; heads that a unit, or a feature, stands for: the covariance of its code with the layer's output along what it writes, as a sum over the model's heads.",
        body: h("div", { class: "scroll" }, CLT.table([{ name: "Layer" }, "FVU", "L0", "dead", ...of], rows)),
      }),
    ];
  }

  function plot(arms, metric, keep, at, xLabel, layers, tokens) {
    const original = arms.find((a) => a.kind === "original");
    const series = Object.keys(STYLE)
      .map((kind) => {
        const mine = arms
          .filter((a) => a.kind === kind && a.tokens === tokens && keep(a) && a[metric] && a[metric].value !== null)
          .sort((a, b) => at(a) - at(b));
        return {
          name: KINDS[kind],
          x: mine.map(at),
          y: mine.map((a) => a[metric].value),
          low: mine.map((a) => a[metric].low),
          high: mine.map((a) => a[metric].high),
          ...STYLE[kind],
        };
      })
      .filter((s) => s.x.length);
    if (!series.length)
      return CLT.empty(
        "No such arms were measured for these tokens: evaluate.cascade.token_sets and single_token_sets of the config say which are.",
      );
    const level =
      original && original[metric] && original[metric].value !== null && metric !== "drop"
        ? [
            {
              name: `original ${show(metric, original[metric].value)}`,
              y: original[metric].value,
              color: "var(--ink-3)",
            },
          ]
        : [];
    return CLT.charts[metric === "kl" ? "logLines" : "lines"]({
      series,
      levels: level,
      xLabel,
      yLabel: "",
      xTicks: [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b),
      xText: (v) => (xLabel === "layers replaced" ? `${v}→${layers - 1}` : String(v)),
      yText: (v) => show(metric, v),
      yZero: metric === "drop",
      label: `${metric} by ${xLabel}`,
      height: 330,
    });
  }

  CLT.pages.cascade = async (_parts, query) => {
    const { evaluation: e, files } = await CLT.load("report");
    const head = [
      h("h1", {}, "Replacement"),
      h(
        "p",
        { class: "lead" },
        "The MLPs of a window of layers are taken out, and the transcoder's reconstruction is added to the stream in their place. “Cascaded”: every later layer reads the stream that the replaced ones have written. Controls run beside every window and single layer; those on fewer images say so in the table. Intervals: 95 % bootstrap over images, rounded outward. KL is drawn on a logarithmic axis.",
      ),
    ];
    const tasks = e ? Object.keys(TASKS).filter((t) => e[t]?.arms.length) : [];
    if (!tasks.length)
      return [head, CLT.missing("cascade", "Not measured: this needs class names and labels (or captions)")];
    const state = {
      task: tasks.includes(query.task) ? query.task : tasks[0],
      tokens: query.tokens,
      metric: query.metric,
    };
    const box = h("div", { class: "stack" }),
      tools = h("div", { class: "tools" });
    function draw() {
      const arms = e[state.task].arms,
        metrics = Object.keys(TASKS[state.task]).filter((m) => arms.some((a) => a[m] && a[m].value !== null));
      const sets = [...new Set(arms.map((a) => a.tokens).filter(Boolean))];
      if (!metrics.includes(state.metric)) state.metric = metrics[0];
      if (!sets.includes(state.tokens)) state.tokens = sets.includes("all") ? "all" : sets[0];
      const last = e.layers - 1;
      tools.replaceChildren(
        ...[
          tasks.length > 1 &&
            CLT.segments(
              "Task",
              tasks.map((t) => [t, TASK_NAMES[t]]),
              state.task,
              (v) => {
                state.task = v;
                draw();
              },
            ),
          CLT.segments(
            "Metric",
            metrics.map((m) => [m, TASKS[state.task][m]]),
            state.metric,
            (v) => {
              state.metric = v;
              draw();
            },
          ),
          CLT.segments(
            "Tokens replaced",
            sets.map((s) => [s, CLT.tokenName(s)]),
            state.tokens,
            (v) => {
              state.tokens = v;
              draw();
            },
          ),
        ].filter(Boolean),
      );
      const heads = [
        { name: "Arm", text: true },
        { name: "Layers", text: true },
        { name: "Tokens", text: true },
        ...metrics.map((m) => TASKS[state.task][m]),
        "images",
      ];
      const rows = arms
        .filter((a) => !a.tokens || a.tokens === state.tokens)
        .map((a) => [
          { v: KINDS[a.kind] || a.kind, t: KINDS[a.kind] || a.kind, kind: a.kind },
          {
            v: a.first === null ? -1 : a.first * 1000 + a.last,
            t: a.first === null ? "" : a.first === a.last ? `${a.first}` : `${a.first}→${a.last}`,
          },
          a.tokens ? CLT.tokenName(a.tokens) : "",
          ...metrics.map((m) => cell(m, a[m])),
          CLT.count(a.n),
        ]);
      box.replaceChildren(
        h(
          "div",
          { class: "grid" },
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "From a layer to the last one",
              note: `${CLT.tokenName(state.tokens)} replaced.`,
              files: state.task === "zero_shot" ? files.cascade?.[state.metric] : null,
              body: plot(
                arms,
                state.metric,
                (a) => a.last === last,
                (a) => a.first,
                "layers replaced",
                e.layers,
                state.tokens,
              ),
            }),
          ),
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "One layer alone",
              note: `${CLT.tokenName(state.tokens)} replaced, in one layer at a time.`,
              files: state.task === "zero_shot" ? files.single?.[state.metric] : null,
              body: plot(
                arms,
                state.metric,
                (a) => a.first === a.last,
                (a) => a.first,
                "layer",
                e.layers,
                state.tokens,
              ),
            }),
          ),
        ),
        ...(state.task === "zero_shot" ? attention(e) : []),
        CLT.figure({
          title: "Every arm",
          note: `${CLT.tokenName(state.tokens)} replaced. Measured in one pass; an arm on fewer images than the others (a control) is paired with the original on the same ones. A click on a heading sorts, and the file holds the other token sets, too.`,
          files: files.arms?.[state.task],
          body: h("div", { class: "scroll" }, CLT.table(heads, rows, { strong: (row) => row[0].kind === "original" })),
        }),
      );
      CLT.remember("cascade", [], state);
    }
    draw();
    return [head, tools, box];
  };
})();
