// Which source layers write each target layer's reconstruction.
(() => {
  "use strict";
  const { h } = CLT;
  const NOTES = {
    uncentred:
      "Mean over tokens of ⟨term, sum of terms⟩ / ‖sum of terms‖². A direction that every token shares counts as contribution.",
    centred: "The same with the mean of every term taken out: what differs between tokens alone.",
    std_over_classes:
      "Standard deviation of the uncentred score over the classes: where the picture depends on what is seen.",
  };
  const NAMES = { uncentred: "Uncentred", centred: "Centred", std_over_classes: "Spread over classes" };
  function map(kind, values, layers, top, signed) {
    const masked = values.map((row, i) => row.map((v, j) => (j < i ? null : v)));
    return h(
      "div",
      {},
      h(
        "div",
        { class: "scroll" },
        CLT.charts.heatmap({
          rows: layers.map((l) => `L${l}`),
          columns: layers.map((l) => `${l}`),
          values: masked,
          scale: (v) => v / top,
          show: (v) =>
            CLT.fixed(v, 2)
              .replace(/^(−?)0\./, "$1.")
              .replace("−.00", ".00"),
          corner: [h("span", {}, "from ↓"), h("br"), h("span", {}, "to →")],
          label: `${NAMES[kind]} contributions, source layer by target layer`,
          title: (i, j, v) => `layer ${i} → ${j}: ${v.toFixed(4)}`,
        }),
      ),
      CLT.charts.scaleBar(signed ? `−${CLT.num(top, 2)}` : "0", CLT.num(top, 2), signed),
    );
  }
  CLT.pages.contributions = async (_parts, query) => {
    const { evaluation: e, files } = await CLT.load("report");
    const head = [
      h("h1", {}, "Contributions"),
      h(
        "p",
        { class: "lead" },
        "A feature of layer i writes to layers i and later. Each cell says how much of target layer j's reconstruction comes from source layer i; every column sums to 1, and a term that points against the sum is negative.",
      ),
    ];
    if (!e?.contributions || !Object.keys(e.contributions).length)
      return [head, CLT.missing("contributions", "Not measured")];
    const sets = Object.keys(e.contributions),
      layers = Array.from({ length: e.layers }, (_, i) => i),
      last = e.layers - 1;
    const box = h("div", { class: "stack" });
    const state = {
      tokens: sets.includes(query.tokens) ? query.tokens : sets[0],
      cls: CLT.whole(query.cls, e.classnames.length) ?? "",
    };
    function draw() {
      const c = e.contributions[state.tokens],
        present = ["uncentred", "centred", "std_over_classes"].filter((k) => c[k]);
      const largest = (k) => Math.max(...c[k].flat().map(Math.abs), 1e-9),
        shared = Math.max(largest("uncentred"), largest("centred"));
      const classes = e.classnames
        .map((n, i) => [i, n])
        .filter(([i]) => c.final_by_class && c.final_by_class[i] && c.final_by_class[i][0] !== null);
      const column = layers.map((i) => c.uncentred[i][last]);
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
                files: files[`contributions_${state.tokens}_${k}`],
                body: map(k, c[k], layers, k === "std_over_classes" ? largest(k) : shared, k !== "std_over_classes"),
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
                h(
                  "div",
                  { class: state.cls === "" ? "" : "w6" },
                  state.cls !== "" && h("h3", {}, "all images"),
                  CLT.charts.bars({
                    items: layers.map((l) => ({ name: `layer ${l}`, value: column[l] })),
                    show: (v) => CLT.fixed(v, 3),
                    label: "Contribution to the last layer",
                    nameWidth: 64,
                  }),
                ),
                state.cls === ""
                  ? null
                  : h(
                      "div",
                      { class: "w6" },
                      h("h3", {}, e.classnames[state.cls]),
                      CLT.charts.bars({
                        items: layers.map((l) => ({ name: `layer ${l}`, value: c.final_by_class[state.cls][l] })),
                        show: (v) => CLT.fixed(v, 3),
                        label: `Contribution to the last layer, ${e.classnames[state.cls]}`,
                        nameWidth: 64,
                      }),
                    ),
              ),
            }),
          ),
        ),
      );
      CLT.remember("contributions", [], state);
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
      ),
      box,
    ];
  };
})();
