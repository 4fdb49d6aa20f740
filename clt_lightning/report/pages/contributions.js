// Which source layers write each target layer's reconstruction, beside linear skip and decoder bias.
(() => {
  "use strict";
  const { h } = CLT;
  const KINDS = ["uncentred", "centred", "std_over_classes"];
  const NOTES = {
    uncentred: "Mean over tokens of ⟨part, sum⟩ / ‖sum‖². A direction that every token shares counts as contribution.",
    centred: "The same with the mean of every part taken out: what differs between tokens alone.",
    std_over_classes:
      "Standard deviation of the uncentred score over the classes: where the picture depends on what is seen.",
  };
  const NAMES = { uncentred: "Uncentred", centred: "Centred", std_over_classes: "Spread over classes" };
  const PARTS = [
    ["whole", "whole reconstruction"],
    ["features", "features alone"],
  ];
  const short = (v) =>
    CLT.fixed(v, 2)
      .replace(/^(−?)0\./, "$1.")
      .replace("−.00", ".00");

  // the rows of a map: source layers, then skip and bias where they are there; a skip that is not is 0 throughout
  function rowsOf(values, layers) {
    const names = [...layers.map((l) => `L${l}`), "skip", "bias"];
    return values
      .map((row, i) => ({ name: names[i], source: i < layers.length ? i : null, row }))
      .filter((r) => r.name !== "skip" || r.row.some((v) => v));
  }
  function map(kind, values, layers, top, signed) {
    const rows = rowsOf(values, layers);
    const sums = layers.map((j) => rows.reduce((sum, r) => sum + (r.row[j] || 0), 0));
    const said = (r, j, v) =>
      `${r.source === null ? { skip: "linear skip", bias: "decoder bias" }[r.name] : `layer ${r.source}`} → ${j}: ${v.toFixed(4)}`;
    return h(
      "div",
      {},
      h(
        "div",
        { class: "scroll" },
        CLT.charts.heatmap({
          rows: rows.map((r) => r.name),
          columns: layers.map((l) => `${l}`),
          values: rows.map((r) => r.row.map((v, j) => (r.source !== null && j < r.source ? null : v))),
          scale: (v) => v / top,
          show: short,
          corner: [h("span", {}, "from ↓"), h("br"), h("span", {}, "to →")],
          label: `${NAMES[kind]} contributions, source by target layer`,
          title: (i, j, v) => said(rows[i], j, v),
        }),
      ),
      CLT.charts.scaleBar(signed ? `−${CLT.num(top, 2)}` : "0", CLT.num(top, 2), signed),
      signed
        ? h(
            "p",
            { class: "note column-sums" },
            `Columns sum to ${[...new Set(sums.map((v) => CLT.fixed(v, 3)))].join(", ")}.`,
          )
        : null,
    );
  }

  CLT.pages.contributions = async (_parts, query) => {
    const { evaluation: e, files } = await CLT.load("report");
    const head = [
      h("h1", {}, "Contributions"),
      h(
        "p",
        { class: "lead" },
        "A feature of layer i writes to layers i and later. Each cell says how much of target layer j's reconstruction comes from source layer i, from the linear skip or from the decoder bias; every column sums to 1, and a part that points against the sum is negative. “Features alone” leaves skip and bias out of the sum.",
      ),
    ];
    if (!e?.contributions || !Object.keys(e.contributions).length)
      return [head, CLT.missing("contributions", "Not measured")];
    const sets = Object.keys(e.contributions);
    const layers = Array.from({ length: e.layers }, (_, i) => i);
    const last = e.layers - 1;
    const box = h("div", { class: "stack" });
    const whole = sets.every((t) => e.contributions[t].whole_uncentred);
    const state = {
      tokens: sets.includes(query.tokens) ? query.tokens : sets[0],
      part: whole && query.part !== "features" ? "whole" : "features",
      cls: CLT.whole(query.cls, e.classnames.length) ?? "",
    };
    function draw() {
      const c = e.contributions[state.tokens];
      const prefix = state.part === "whole" ? "whole_" : "";
      const of = (kind) => c[`${prefix}${kind}`];
      const present = KINDS.filter(of);
      const largest = (k) => Math.max(...of(k).flat().map(Math.abs), 1e-9);
      const shared = Math.max(largest("uncentred"), largest("centred"));
      const byClass = of("final_by_class");
      const classes = e.classnames.map((n, i) => [i, n]).filter(([i]) => byClass?.[i] && byClass[i][0] !== null);
      const bars = (column, title, label) =>
        h(
          "div",
          { class: state.cls === "" ? "" : "w6" },
          title && h("h3", {}, title),
          CLT.charts.bars({
            items: rowsOf(
              column.map((v) => [v]),
              layers,
            ).map((r) => ({ name: r.source === null ? r.name : `layer ${r.source}`, value: r.row[0] })),
            show: (v) => CLT.fixed(v, 3),
            label,
            nameWidth: 64,
          }),
        );
      const column = of("uncentred").map((row) => row[last]);
      box.replaceChildren(
        h(
          "div",
          { class: "grid" },
          present.map((k) =>
            h(
              "div",
              { class: "w6" },
              CLT.figure({
                title: NAMES[k],
                note: NOTES[k],
                files: files[`contributions_${state.tokens}_${prefix}${k}`],
                body: map(k, of(k), layers, k === "std_over_classes" ? largest(k) : shared, k !== "std_over_classes"),
              }),
            ),
          ),
          h(
            "div",
            { class: "w6" },
            CLT.figure({
              title: "What the last layer is made of",
              note: classes.length ? "The last column, over all images and for one class." : "The last column.",
              tools: classes.length
                ? CLT.select("Class", [["", "all images only"], ...classes], state.cls, (v) => {
                    state.cls = v;
                    draw();
                  })
                : null,
              body: h(
                "div",
                { class: "grid" },
                bars(column, state.cls !== "" && "all images", "Contribution to the last layer"),
                state.cls !== "" && byClass[state.cls]
                  ? bars(
                      byClass[state.cls],
                      e.classnames[state.cls],
                      `Contribution to the last layer, ${e.classnames[state.cls]}`,
                    )
                  : null,
              ),
            }),
          ),
        ),
      );
      CLT.remember("contributions", [], { ...state, part: state.part === "whole" ? "" : state.part });
    }
    draw();
    return [
      head,
      h(
        "div",
        { class: "tools" },
        CLT.segments(
          "Tokens",
          sets.map((s) => [s, CLT.tokenName(s)]),
          state.tokens,
          (v) => {
            state.tokens = v;
            draw();
          },
        ),
        whole &&
          CLT.segments("Parts", PARTS, state.part, (v) => {
            state.part = v;
            draw();
          }),
      ),
      box,
    ];
  };
})();
