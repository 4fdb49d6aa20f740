// The index of features: a scatter and a table over the same choice.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.pages.features = async (_parts, query) => {
    const { files } = await CLT.load("report");
    const head = h("h1", {}, "Features");
    const meta = await CLT.load("features");
    if (!meta) return [head, CLT.missing("features", "No features were collected")];
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    const state = {
      layer: query.layer ?? "",
      text: query.text ?? "",
      dead: query.dead === "true",
      sort: query.sort || "frequency",
      down: query.down !== "false",
    };
    const valued = { label_entropy: c.classnames.length > 0, monosemanticity: true };
    const columns = [
      {
        key: "image",
        name: "",
        width: "44px",
        cell: (i) =>
          c.image[i] >= 0 ? CLT.thumb(sprites, c.image[i], { mode: "image", alt: "strongest image", link: false }) : "",
      },
      {
        key: "id",
        name: "Feature",
        width: "minmax(72px, 1fr)",
        value: (i) => i,
        cls: "id",
        cell: (i) => `L${c.layer(i)} · ${c.feature(i)}`,
      },
      {
        key: "class",
        name: "Strongest class",
        width: "minmax(68px, 1.6fr)",
        value: (i) => c.className(c.class_index[i]),
        cell: (i) =>
          c.class_index[i] < 0
            ? h("span", { class: "dim" }, "–")
            : `${c.className(c.class_index[i])} ${CLT.percent(c.class_share[i], 0)}`,
        help: "The class with the largest share of the feature's activation",
      },
      {
        key: "word",
        name: "Nearest word",
        width: "minmax(80px, 1.2fr)",
        hideSmall: true,
        value: (i) => c.word(c.nearest_word[i]),
        cell: (i) => c.word(c.nearest_word[i]) || h("span", { class: "dim" }, "–"),
        help: "The word whose CLIP text embedding is nearest to its images",
      },
      {
        key: "frequency",
        name: "Frequency",
        width: "minmax(68px, .9fr)",
        number: true,
        value: (i) => c.frequency[i],
        cell: (i) => CLT.percent(c.frequency[i], c.frequency[i] < 0.001 ? 3 : 2),
        help: "Share of tokens on which it is active",
      },
      {
        key: "mean_code",
        name: "Mean code",
        width: "minmax(70px, .8fr)",
        number: true,
        hideSmall: true,
        value: (i) => c.mean_code[i],
        cell: (i) => CLT.num(c.mean_code[i]),
        help: "Mean of its non-zero codes",
      },
      {
        key: "max_code",
        name: "Max",
        width: "minmax(60px, .7fr)",
        number: true,
        hideSmall: true,
        value: (i) => c.max_code[i],
        cell: (i) => CLT.num(c.max_code[i]),
      },
      {
        key: "monosemanticity",
        name: "MS",
        width: "minmax(44px, .6fr)",
        number: true,
        value: (i) => c.monosemanticity[i],
        cell: (i) => CLT.fixed(c.monosemanticity[i], 3),
        help: "Monosemanticity: mean cosine between its images' CLIP embeddings, weighted by activation",
      },
      {
        key: "label_entropy",
        name: "Entropy",
        width: "minmax(64px, .7fr)",
        number: true,
        hideSmall: true,
        value: (i) => c.label_entropy[i],
        cell: (i) => CLT.fixed(c.label_entropy[i], 2),
        help: "Entropy in nats of its activation over classes; low: few classes",
      },
    ].filter(
      (x) =>
        valued[x.key] !== false &&
        !(x.key === "word" && !c.words.length) &&
        !(x.key === "class" && !c.classnames.length),
    );
    if (!columns.some((x) => x.key === state.sort && x.value)) state.sort = "frequency";
    const found = h("span", { class: "note", style: { margin: 0 }, role: "status" }),
      inside = new Uint8Array(c.n);
    const x = Float32Array.from(c.frequency, (v) => (v > 0 ? Math.log10(v) : NaN)),
      y = Float32Array.from(c.mean_code, (v, i) => (c.frequency[i] > 0 ? v : NaN));
    const colors = Array.from({ length: c.layers }, (_, l) => CLT.layerColor(l, c.layers));
    const scatter = CLT.charts.scatter({
      x,
      y,
      color: (i) => colors[c.layer(i)],
      bright: (i) => inside[i] === 1,
      xLabel: "share of tokens on which it is active",
      yLabel: "mean code",
      height: 300,
      xText: (v) => `${CLT.num(100 * 10 ** v, 2)} %`,
      yText: (v) => CLT.num(v, 2),
      label: "Features by firing frequency and mean code; the table below holds the same numbers",
      describe: (i) =>
        `layer ${c.layer(i)}, feature ${c.feature(i)}\n${CLT.percent(c.frequency[i], 3)} of tokens, mean ${CLT.num(c.mean_code[i])}\n${c.className(c.class_index[i])}`,
      onpick: (i) => CLT.go("feature", [c.layer(i), c.feature(i)]),
    });
    const table = CLT.vtable({
      columns,
      label: "Features",
      sort: { key: state.sort, down: state.down },
      href: (i) => CLT.href("feature", [c.layer(i), c.feature(i)]),
      onsort: (s) => {
        state.sort = s.key;
        state.down = s.down;
        update();
      },
    });
    function update() {
      const list = CLT.searchFeatures(c, state),
        column = columns.find((k) => k.key === state.sort);
      inside.fill(0);
      for (const i of list) inside[i] = 1;
      CLT.order = CLT.sortFeatures(list, column.value, state.down);
      table.show(CLT.order);
      scatter.redraw();
      found.textContent = `${CLT.count(list.length)} of ${CLT.count(c.n)} features`;
      CLT.remember("features", [], {
        layer: state.layer,
        text: state.text,
        dead: state.dead || "",
        sort: state.sort,
        down: state.down,
      });
    }
    let timer = null;
    const search = h("input", {
      type: "search",
      id: "search",
      placeholder: "Search: class, word, or layer:feature such as 3:120",
      "aria-label": "Search features",
      value: state.text,
      oninput: (e) => {
        state.text = e.target.value;
        clearTimeout(timer);
        timer = setTimeout(update, 120);
      },
    });
    const legend = h(
      "ul",
      { class: "legend" },
      colors.map((color, l) => h("li", {}, h("i", { class: "box", style: { background: color } }), `L${l}`)),
    );
    update();
    return [
      head,
      h(
        "p",
        { class: "lead" },
        `${CLT.count(c.n)} features in ${c.layers} layers, collected on ${CLT.count(c.images)} images of the ${c.split} split. A row or a point leads to the feature's card.`,
      ),
      h(
        "div",
        { class: "tools" },
        search,
        CLT.select("Layer", [["", "all"], ...Array.from({ length: c.layers }, (_, l) => [l, l])], state.layer, (v) => {
          state.layer = v;
          update();
        }),
        h(
          "label",
          {},
          h("input", {
            type: "checkbox",
            checked: state.dead,
            onchange: (e) => {
              state.dead = e.target.checked;
              update();
            },
          }),
          "dead ones, too",
        ),
        found,
        CLT.downloads(files.features),
      ),
      h("div", { class: "stack" }, h("section", { class: "card" }, scatter, legend), table),
    ];
  };
})();
