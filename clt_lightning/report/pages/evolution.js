// How features change from layer to layer: numbers by layer, the strongest chains, and one feature followed both ways.
(() => {
  "use strict";
  const { h } = CLT;
  const ROWS = 40;
  const ORDERS = {
    near: "nearest to one before",
    new: "like none before",
    bound: "bound to a place",
    smooth: "smoothest map",
    often: "most often",
  };

  // -- numbers by layer -------------------------------------------------------------------------------------------
  const at = (data, q) => data.quantiles.indexOf(q);
  // median and quartiles of what `of(entry)` names, over entries of `x`
  function series(data, name, entries, of, x, more = {}) {
    const [low, middle, high] = [0.25, 0.5, 0.75].map((q) => entries.map((e) => of(e)?.[at(data, q)] ?? null));
    return { name, x, y: middle, low, high, ...more };
  }
  const only = (data, name, entries, of, x, color) => ({
    name,
    x,
    y: entries.map((e) => of(e)?.[at(data, 0.5)] ?? null),
    dash: "5 4",
    marks: false,
    color,
  });
  const chart = (title, note, drawn) => h("div", { class: "w6" }, CLT.figure({ title, note, body: drawn }));

  function charts(data) {
    const blocks = data.layers.map((l) => l.block);
    const later = blocks.slice(1);
    const common = { xLabel: "block", xText: String, height: 240 };
    const by = (key) => series(data, "median, quartiles", data.layers, (l) => l.spread[key], blocks);
    const rules = Object.keys(CLT.LINKS).filter((rule) => data.pairs.some((p) => p[rule]));
    const like = rules.filter((rule) => rule !== "edges");
    const named = { weights: "weights (cosine)", profiles: "activity (Spearman)" };
    const near = like.flatMap((rule, n) => [
      series(data, named[rule], data.pairs, (p) => p[rule].spread, later, { color: CLT.series(n) }),
      only(data, `${named[rule]}, by chance`, data.pairs, (p) => p[rule].chance, later, CLT.series(n)),
    ]);
    const same = Object.keys(data.pairs[0]?.same ?? {}).map((key) => ({
      name: key
        .split(", ")
        .map((rule) => CLT.LINKS[rule].name)
        .join(" and "),
      x: later,
      y: data.pairs.map((p) => p.same[key]),
    }));
    return h(
      "div",
      { class: "grid" },
      chart(
        "How often they fire",
        "Share of tokens, on a logarithmic axis.",
        CLT.charts.logLines({
          ...common,
          series: [by("frequency")],
          yText: (v) => CLT.percent(v, 2),
          xTicks: blocks,
          label: "Share of tokens at which features fire, by block",
        }),
      ),
      chart(
        "What a position tells",
        "Bits that the position in the image tells about whether a feature fires, less what chance would.",
        CLT.charts.lines({
          ...common,
          series: [by("selectivity")],
          yZero: true,
          xTicks: blocks,
          label: "Position selectivity in bits, by block",
        }),
      ),
      chart(
        "How smooth their maps are",
        "Moran's I: near 1 where neighbouring patches fire alike.",
        CLT.charts.lines({
          ...common,
          series: [by("moran")],
          levels: [{ name: "without any order", y: -1 / (data.patches - 1), color: "var(--ink-3)" }],
          xTicks: blocks,
          label: "Moran's I of features' maps, by block",
        }),
      ),
      later.length
        ? chart(
            "How near the nearest one before is",
            "Of each feature, the nearest in the block before. By chance: among random mixtures of what that block writes, and with its images in another order.",
            CLT.charts.lines({
              ...common,
              series: near,
              yZero: true,
              xTicks: later,
              label: "Nearest feature of the block before, by block",
            }),
          )
        : null,
      rules.includes("edges")
        ? chart(
            "How much the strongest edge carries",
            "Its share of all positive edges into a feature: high where features are handed on, low where many make one.",
            CLT.charts.lines({
              ...common,
              series: [series(data, "median, quartiles", data.pairs, (p) => p.edges.share_spread, later)],
              yZero: true,
              yText: (v) => CLT.percent(v, 0),
              xTicks: later,
              label: "Share of the strongest edge, by block",
            }),
          )
        : null,
      same.length
        ? chart(
            "Whether they name the same one",
            "Share of features whose nearest one before is the same by two rules.",
            CLT.charts.lines({
              ...common,
              series: same,
              yZero: true,
              yText: (v) => CLT.percent(v, 0),
              xTicks: later,
              label: "Features with the same nearest one by two rules, by block",
            }),
          )
        : null,
    );
  }

  // -- one feature, both ways -------------------------------------------------------------------------------------
  // back to the first layer by the nearest one each time, and on by the nearest follower
  async function path(data, rule, layer, feature) {
    const out = [[layer, feature, null]];
    for (let l = layer; l > 0; l--) {
      const [first] = CLT.linksBefore(await CLT.evolutionLayer(l), rule, out[0][1]);
      if (!first) break;
      out[0][2] = first[1];
      out.unshift([l - 1, first[0], null]);
    }
    for (let l = layer + 1; l < data.layers.length; l++) {
      const [first] = CLT.linksAfter(await CLT.evolutionLayer(l), rule, out.at(-1)[1]);
      if (!first) break;
      out.push([l, ...first]);
    }
    return out;
  }
  const pair = (rule, layer, [feature, value], pick) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "plain small", onclick: () => pick(layer, feature) },
        `L${layer} · ${feature}`,
      ),
      ` ${CLT.LINKS[rule].show(value)}`,
    );
  async function neighbours(data, rules, layer, feature, pick) {
    const [here, next] = await Promise.all([
      layer > 0 ? CLT.evolutionLayer(layer) : null,
      layer + 1 < data.layers.length ? CLT.evolutionLayer(layer + 1) : null,
    ]);
    return h(
      "div",
      { class: "links" },
      rules.map((rule) => {
        const before = here ? CLT.linksBefore(here, rule, feature) : [];
        const after = next ? CLT.linksAfter(next, rule, feature) : [];
        return h(
          "div",
          {},
          h("h3", {}, `By ${CLT.LINKS[rule].name}`),
          h("p", { class: "note" }, before.length ? "before, nearest first" : "nothing before"),
          h(
            "ul",
            {},
            before.map((found) => pair(rule, layer - 1, found, pick)),
          ),
          h(
            "p",
            { class: "note" },
            after.length ? `nearest one of ${CLT.count(after.length)} after it` : "nearest one of none after it",
          ),
          h(
            "ul",
            {},
            after.slice(0, 3).map((found) => pair(rule, layer + 1, found, pick)),
          ),
        );
      }),
    );
  }

  // -- a layer's features -----------------------------------------------------------------------------------------
  function order(columns, rule, kind) {
    const alive = Array.from(columns.frequency.keys()).filter((f) => columns.frequency[f] > 0);
    const best = (f) => CLT.linksBefore(columns, rule, f)[0]?.[1] ?? null;
    const key = {
      near: (f) => best(f),
      new: (f) => (best(f) === null ? null : -best(f)),
      bound: (f) => columns.selectivity[f],
      smooth: (f) => columns.moran[f],
      often: (f) => columns.frequency[f],
    }[kind];
    return alive
      .map((f) => [f, key(f)])
      .sort((a, b) => CLT.compare(b[1], a[1]))
      .map(([f]) => f);
  }
  function table(columns, rules, layer, listed, pick) {
    const cell = (v, show) => ({ v, t: show(v) });
    return CLT.table(
      [
        { name: "Feature", text: true },
        "fires",
        "bits",
        "Moran's I",
        ...rules.map((rule) => ({ name: `before, by ${CLT.LINKS[rule].name}`, text: true })),
      ],
      listed.map((f) => [
        h("button", { type: "button", class: "plain small", onclick: () => pick(layer, f) }, `L${layer} · ${f}`),
        cell(columns.frequency[f], (v) => CLT.percent(v, 2)),
        cell(columns.selectivity[f], (v) => CLT.fixed(v, 3)),
        cell(columns.moran[f], (v) => CLT.fixed(v, 2)),
        ...rules.map((rule) => {
          const [first] = CLT.linksBefore(columns, rule, f);
          return first ? { v: first[1], t: `${first[0]}: ${CLT.LINKS[rule].show(first[1])}` } : { v: null, t: "–" };
        }),
      ]),
    );
  }

  // -- the page -----------------------------------------------------------------------------------------------------
  CLT.load("evolution").then((data) => data && CLT.navigation("evolution"));

  CLT.pages.evolution = async (_parts, query) => {
    const [data, catalogue, sprites, report] = await Promise.all([
      CLT.load("evolution"),
      CLT.catalogue(),
      CLT.load("sprites"),
      CLT.load("report"),
    ]);
    const head = h("h1", {}, "Over the layers");
    if (!data) return [head, CLT.missing("evolution", "Features were not followed over the layers")];
    const rules = Object.keys(CLT.LINKS).filter((rule) => data.chains[rule]);
    const layers = data.layers.map((_, n) => n);
    const state = {
      by: rules.includes(query.by) ? query.by : rules[0],
      layer: CLT.whole(query.layer, layers.length) ?? layers.length - 1,
      order: Object.hasOwn(ORDERS, query.order ?? "") ? query.order : "near",
      feature: CLT.whole(query.feature, data.features),
    };
    const strips = h("div", { class: "linkstrips", style: { "--wide": `${154 * data.layers.length}px` } });
    const note = h("p", { class: "note" });
    const followed = h("div");
    const list = h("div");
    const world = { catalogue, sprites, onpick: (layer, feature) => pick(layer, feature) };
    const number = h("input", { type: "number", min: 0, max: data.features - 1, step: 1, class: "short" });
    const layer = CLT.select(
      "Layer",
      layers.map((n) => [n, `L${n}, block ${data.layers[n].block}`]),
      state.layer,
      (v) => {
        state.layer = Number(v);
        state.feature = null;
        draw();
      },
    );
    number.addEventListener("change", () => {
      const value = CLT.whole(number.value, data.features);
      if (value !== null) pick(state.layer, value);
    });
    let turn = 0;
    async function draw() {
      const mine = ++turn;
      CLT.remember("evolution", [], { ...state, feature: state.feature ?? "" });
      note.textContent = `From each layer back to the nearest feature of the one before, ${CLT.LINKS[state.by].about} A chain is as strong as its weakest link; below a feature: how often it fires, and Moran's I. A picture follows the feature, its number leads to its card.`;
      const chains = data.chains[state.by].slice(0, 6).map(({ features, values }) =>
        CLT.featureStrip(
          world,
          features.map((f, l) => [l, f, l ? values[l - 1] : null]),
          state.by,
        ),
      );
      const columns = await CLT.evolutionLayer(state.layer);
      const listed = order(columns, state.by, state.order);
      const feature = state.feature ?? listed[0] ?? 0;
      const way = await path(data, state.by, state.layer, feature);
      const drawn = await Promise.all([
        Promise.all(chains),
        CLT.featureStrip(world, way, state.by, [state.layer, feature]),
        neighbours(data, rules, state.layer, feature, pick),
      ]);
      if (mine !== turn) return;
      number.value = feature;
      layer.querySelector("select").value = state.layer;
      strips.replaceChildren(
        ...(drawn[0].length ? drawn[0] : [CLT.empty("No chain reaches from the first layer to the last.")]),
      );
      followed.replaceChildren(drawn[1], drawn[2]);
      list.replaceChildren(
        CLT.scroll("Features of the layer", table(columns, rules, state.layer, listed.slice(0, ROWS), pick)),
        ...(listed.length > ROWS
          ? [h("p", { class: "note" }, `The first ${ROWS} of ${CLT.count(listed.length)}.`)]
          : []),
      );
    }
    const one = CLT.figure({
      title: "One feature, followed",
      note: "Back by the nearest one each time, and on by the feature that is nearest to it among those of which it is the nearest.",
      tools: [layer, h("label", {}, "Feature", number)],
      body: followed,
    });
    function pick(l, f) {
      Object.assign(state, { layer: l, feature: f });
      draw().then(() => one.scrollIntoView({ block: "nearest" }));
    }
    await draw();
    return [
      head,
      h(
        "p",
        { class: "lead" },
        `What becomes of ${CLT.count(data.features)} features a layer from block to block, over ${CLT.count(data.images)} images of the ${data.split} split. Features that never fired there take no part.`,
      ),
      h(
        "div",
        { class: "stack" },
        charts(data),
        h(
          "div",
          { class: "tools" },
          CLT.segments(
            "Nearest by",
            rules.map((rule) => [rule, `by ${CLT.LINKS[rule].name}`]),
            state.by,
            (v) => {
              state.by = v;
              draw();
            },
          ),
        ),
        CLT.figure({ title: "The strongest chains", files: report.files.evolution, body: [note, strips] }),
        one,
        CLT.figure({
          title: "Features of the layer",
          note: "Before: the nearest feature of the layer before and how near it is.",
          tools: CLT.select("Order", Object.entries(ORDERS), state.order, (v) => {
            state.order = v;
            draw();
          }),
          body: list,
        }),
      ),
    ];
  };
})();
