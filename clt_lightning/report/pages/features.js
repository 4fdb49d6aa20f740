// The explorer: a scatter, a table and a gallery over the same choice of features.
(() => {
  "use strict";
  const { h } = CLT;
  const DEFAULTS = { x: "frequency", y: "monosemanticity" };

  // "0.1,0.5,0.2,0.4" of an address -> {x0, x1, y0, y1}
  function boxOf(text) {
    const values = (text || "").split(",").map(Number);
    return values.length === 4 && text && values.every(Number.isFinite)
      ? { x0: values[0], x1: values[1], y0: values[2], y1: values[3] }
      : null;
  }

  CLT.pages.features = async (_, query) => {
    const { files, evaluation } = await CLT.load("report");
    const head = h("h1", {}, "Features");
    if (!(await CLT.load("features"))) return [head, CLT.missing("features", "No features were collected")];
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    const numbers = CLT.numbersOf(c);
    const known = (key) => numbers.some((number) => number.key === key);
    const presets = CLT.presetsOf(c);
    const clear = CLT.filterFeatures(c, { preset: "clear", layer: "", text: "", dead: false, box: null }).count > 0;
    const normal = clear ? "clear" : "all";
    const layer = CLT.whole(query.layer, c.layers);
    const state = {
      preset: presets.some((p) => p.key === query.preset) ? query.preset : normal,
      layer: layer === null ? "" : layer,
      text: query.text ?? "",
      dead: query.dead === "true",
      x: known(query.x) ? query.x : DEFAULTS.x,
      y: known(query.y) ? query.y : DEFAULTS.y,
      box: boxOf(query.box),
    };
    const preset = () => presets.find((p) => p.key === state.preset);
    const columns = CLT.featureColumns(c, sprites, numbers);
    const sortable = (key) => columns.some((column) => column.sortable && column.key === key) || key === "images";
    state.sort = sortable(query.sort) ? query.sort : preset().sort;
    state.down = query.down
      ? query.down !== "false"
      : state.sort !== "id" && state.sort !== "name" && state.sort !== "word";

    const colors = Array.from({ length: c.layers }, () => null);
    const tint = () =>
      colors.forEach((__, l) => {
        colors[l] = CLT.layerRgb(l, c.layers);
      });
    tint();
    const effect = (i) => (c.effect ? `\neffect ${CLT.num(c.effect[i])}` : "");
    const axis = (key) => ({ values: c[key], ...numbers.find((number) => number.key === key) });
    const scatter = CLT.charts.scatter({
      color: (i) => colors[c.layer(i)],
      label: "Features by two of their numbers; the table holds the same",
      describe: (i) =>
        [
          c.id(i),
          CLT.featureName(c, i).text,
          ...[state.x, state.y].map((key) => `${axis(key).title} ${axis(key).show(c[key][i])}`),
        ].join("\n") + effect(i),
      onpick: (i) => {
        location.hash = c.href(i);
      },
      onbrush: (box) => {
        state.box = box;
        update();
      },
      height: 270,
    });
    const table = CLT.vtable({
      columns,
      label: "Features",
      sort: { key: state.sort, down: state.down },
      href: c.href,
      onsort: (sort) => {
        Object.assign(state, { sort: sort.key, down: sort.down });
        update();
      },
    });
    const gallery = CLT.gallery(c, sprites, { label: "Gallery of features" });
    const found = h("p", { class: "note found", role: "status" });
    const about = h("span", {});
    const range = CLT.boxInputs((box) => {
      state.box = box;
      update();
    });

    function update() {
      const box = state.box && { ...state.box, x: c[state.x], y: c[state.y] };
      const choice = CLT.filterFeatures(c, { ...state, box });
      CLT.order = CLT.sortFeatures(c, choice, state.sort, state.down);
      table.show(CLT.order, { key: state.sort, down: state.down });
      gallery.show(CLT.order);
      scatter.draw({ x: axis(state.x), y: axis(state.y) }, choice.inside, state.box);
      sortBy.querySelector("select").value = state.sort;
      range.show(axis(state.x).title, axis(state.y).title, state.box);
      about.textContent = preset().about;
      found.replaceChildren(
        h("b", {}, CLT.count(choice.count)),
        ` of ${CLT.count(c.n)} features`,
        ...(choice.count
          ? []
          : [". ", state.box ? "None lies in the box." : "Nothing fits: try another preset, or All."]),
      );
      const own = {
        box: state.box ? ["x0", "x1", "y0", "y1"].map((k) => CLT.short(state.box[k])).join(",") : "",
        dead: state.dead || "",
      };
      const usual = { preset: normal, x: DEFAULTS.x, y: DEFAULTS.y, sort: preset().sort, down: true };
      const told = Object.entries({ ...state, ...own }).filter(([key, value]) => value !== usual[key]);
      CLT.remember("features", [], Object.fromEntries(told));
    }
    let timer = null;
    const search = h("input", {
      type: "search",
      id: "search",
      placeholder: "Class, word, or number: red circle, 623, 2/623, L2F623",
      "aria-label": "Search features",
      value: state.text,
      oninput: (e) => {
        state.text = e.target.value;
        clearTimeout(timer);
        timer = setTimeout(() => explorer.isConnected && update(), 120);
      },
    });
    const pick = CLT.segments(
      "Preset",
      presets.map((p) => [p.key, p.title]),
      state.preset,
      (key) => {
        state.preset = key;
        Object.assign(state, { sort: preset().sort, down: true });
        update();
      },
    );
    const axisSelect = (name, key) =>
      CLT.select(
        name,
        numbers.map((n) => [n.key, n.title]),
        state[key],
        (v) => {
          state[key] = v;
          state.box = null; // its units are those of the old axis
          update();
        },
      );
    const layers = Array.from({ length: c.layers }, (__, l) => [l, l]);
    const sorts = columns.filter((column) => column.sortable).map((column) => [column.key, column.name]);
    sorts.push(["images", "Number of images"]);
    const sortBy = CLT.select("Sort by", sorts, state.sort, (v) => {
      Object.assign(state, { sort: v, down: v !== "id" && v !== "name" && v !== "word" });
      update();
    });
    const legend = h("ul", { class: "legend" });
    const paint = () => {
      tint();
      legend.replaceChildren(
        ...colors.map((rgb, l) =>
          h("li", {}, h("i", { class: "box", style: { background: `rgb(${rgb.join(" ")})` } }), `L${l}`),
        ),
      );
    };
    paint();
    CLT.onTheme(legend, () => {
      paint();
      scatter.redraw();
    });
    const views = CLT.segments(
      "View",
      [
        ["gallery", "gallery"],
        ["table", "table"],
      ],
      "gallery",
      (view) => {
        explorer.dataset.view = view;
      },
    );
    views.classList.add("only-small");
    const explorer = h(
      "div",
      { class: "explorer", "data-view": "gallery" },
      h(
        "section",
        { class: "card plot", "aria-label": "Scatter" },
        h(
          "div",
          { class: "tools" },
          axisSelect("Across", "x"),
          axisSelect("Up", "y"),
          h(
            "button",
            {
              type: "button",
              class: "plain small",
              onclick: () => {
                state.box = null;
                update();
              },
            },
            "clear box",
          ),
        ),
        scatter,
        legend,
        h("p", { class: "note" }, "Drag a box to choose what lies in it. The denser, the stronger; grey: not chosen."),
        range.node,
      ),
      gallery,
      table,
    );
    queueMicrotask(update);
    return [
      h("div", { class: "row between" }, head, CLT.downloads(files.features)),
      h(
        "p",
        { class: "lead" },
        `${CLT.count(c.n)} features in ${c.layers} layers, collected on ${CLT.count(c.seen)} images of the ${c.split} split. `,
        about,
        ".",
      ),
      h(
        "div",
        { class: "tools" },
        search,
        CLT.select("Layer", [["", "all"], ...layers], state.layer, (v) => {
          state.layer = v;
          update();
        }),
        sortBy,
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
      ),
      h("div", { class: "tools" }, pick, found, views),
      explorer,
      evaluation?.effects
        ? h(
            "details",
            { class: "check" },
            h("summary", {}, "How far to trust the effects: predicted beside real ablation"),
            h("p", { class: "note" }, CLT.EFFECT_CHECK_NOTE),
            CLT.effectCheck(evaluation.effects),
          )
        : null,
    ];
  };
})();
