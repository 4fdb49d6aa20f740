// The circuit of an image: what made it this class, by way of which features, and what happens without some.
(() => {
  "use strict";
  const { h } = CLT;
  const EDGES = [50, 100, 200, 400, 800, 3000];
  const padded = (n) => String(n).padStart(5, "0");
  const list = (text) => (text || "").split(",").filter(Boolean);

  CLT.circuitCommand = (key) =>
    CLT.page("circuit").needs.replace("KEY", () => (/^[\w./:-]+$/.test(key) ? key : `'${key}'`));

  CLT.pages.circuit = async ([number], query) => {
    const [sprites, known] = await Promise.all([CLT.load("sprites"), CLT.load("circuits")]);
    if (number === undefined) return index(sprites, known);
    const n = CLT.whole(number, sprites.keys.length);
    if (n === null) throw new CLT.Nowhere(`There is no image “${number}” in this report.`);
    if (!known?.images.some(({ image }) => image === n))
      return [
        h("h1", {}, sprites.keys[n] || `Image ${n}`),
        CLT.empty(
          "No circuit of this image was made. This makes one: ",
          h("code", {}, CLT.circuitCommand(sprites.keys[n] || "KEY")),
        ),
      ];
    const data = await CLT.load(`circuits/${padded(n)}`);
    return page(data, { sprites, query, image: n, remember: (state) => CLT.remember("circuit", [n], state) });
  };

  function index(sprites, known) {
    const title = h("h1", {}, "Circuits");
    if (!known?.images.length) return [title, CLT.missing("circuit", "There are no circuits in this report")];
    const shots = known.images.map(({ image, targets }) =>
      h(
        "a",
        { class: "shot", href: CLT.href("circuit", [image]) },
        CLT.thumb(sprites, image, { mode: "image", alt: sprites.keys[image], link: false }),
        h(
          "span",
          { class: "said" },
          targets.map((name) => h("span", { class: "cut" }, name)),
        ),
      ),
    );
    return [title, h("p", { class: "lead" }, CLT.page("circuit").about), h("div", { class: "shots" }, shots)];
  }

  async function page(data, { sprites, query, image, remember }) {
    const catalogue = await CLT.catalogue();
    const which = CLT.whole(query.target, data.circuits.length) ?? 0;
    const chosen = data.circuits[which];
    const g = CLT.circuit(Object.assign(chosen, { grid: data.grid, picture: data.picture }));
    g.total ||= g.nodes.filter(g.counted).reduce((sum, node) => sum + node.influence, 0) || 1;
    const called = (node) => {
      if (node.kind !== "feature" || !catalogue) return "";
      const { kind, text } = CLT.featureName(catalogue, node.layer * catalogue.size + node.feature);
      return kind === "none" ? "" : text;
    };

    // -- the state, from the address; what it names and the circuit has not is left out
    const found = (ids) => [...new Set(ids.map((id) => g.byId.get(id)).filter(Boolean))];
    const json = (text) => {
      try {
        return JSON.parse(text);
      } catch (_) {
        return null;
      }
    };
    const share = Number(query.pruningThreshold);
    const state = {
      share: query.pruningThreshold && share >= 0.05 && share <= 1 ? share : g.open,
      edges: EDGES.includes(Number(query.edges)) ? Number(query.edges) : 200,
      clicked: g.byId.get(query.clickedId) || null,
      pins: found(list(query.pinnedIds)).filter((node) => node.kind !== "target"),
      groups: [],
      factor: ["0", "0.5", "2"].includes(query.factor) ? query.factor : "0",
      heads: query.heads === "1",
      notes: new Map(),
      text: query.note || "",
    };
    const taken = new Set();
    const entries = json(query.supernodes);
    for (const entry of Array.isArray(entries) ? entries : []) {
      if (!Array.isArray(entry) || !entry.length || entry.some((word) => typeof word !== "string")) continue;
      const nodes = found(entry.slice(1)).filter((node) => node.kind !== "target" && !taken.has(node));
      for (const node of nodes) taken.add(node);
      if (nodes.length) state.groups.push({ name: entry[0], nodes });
    }
    for (const node of taken) if (!state.pins.includes(node)) state.pins.push(node);
    for (const [id, text] of Object.entries(json(query.notes) || {}))
      if (g.byId.has(id) && typeof text === "string") state.notes.set(id, text);
    function tell() {
      remember({
        target: which || "",
        pruningThreshold: state.share === g.open ? "" : state.share,
        edges: state.edges === 200 ? "" : state.edges,
        clickedId: state.clicked?.id,
        pinnedIds: state.pins.map((node) => node.id).join(","),
        supernodes: state.groups.length
          ? JSON.stringify(state.groups.map(({ name, nodes }) => [name, ...nodes.map((node) => node.id)]))
          : "",
        factor: state.factor === "0" ? "" : state.factor,
        heads: state.heads ? "1" : "",
        notes: state.notes.size ? JSON.stringify(Object.fromEntries(state.notes)) : "",
        note: state.text,
      });
    }

    // -- the picture
    const said = h("p", { class: "note said" });
    const rest = "Point at a node to see where it is active; pick a patch to see its nodes.";
    said.textContent = rest;
    const picker = CLT.picturePicker(data.picture, data.grid, data.key, () => mark());
    function point(node) {
      const map = node && g.map(node);
      if (!map) {
        picker.paint(null);
        said.textContent = node ? CLT.circuitName(g, node, called(node)) : rest;
        return;
      }
      // the page's pictures have one position before their patches
      const patches = data.grid[0] * data.grid[1];
      const shown = new Float32Array(1 + patches);
      shown.set(map.subarray(g.prefix, g.prefix + patches), 1);
      if (node.position >= g.prefix && !shown[node.position - g.prefix + 1]) shown[node.position - g.prefix + 1] = 1;
      picker.paint(shown);
      said.replaceChildren(
        h("b", {}, CLT.circuitName(g, node, called(node))),
        node.kind === "feature" ? `: code ${CLT.num(node.activation)} there` : "",
      );
    }

    // -- the drawing and what follows it
    const drawing = CLT.circuitDrawing(g, { sprites, catalogue, called, on: { point, pick } });
    const side = h("div", { class: "circuit-node" });
    const pinned = h("div", { class: "circuit-pins" });
    const count = h("p", { class: "note", role: "status" });
    function mark() {
      const at = picker.picked();
      const position = at === null ? null : at === 0 ? 0 : at - 1 + g.prefix;
      drawing.mark("here", (node) => position !== null && g.isAt(node, position));
      drawing.mark("pinned", (node) => state.pins.includes(node));
      drawing.mark("noted", (node) => state.notes.has(node.id));
    }
    function draw() {
      const shown = g.visible(state.share, state.edges);
      // what is pinned or picked stays
      for (const node of [...state.pins, state.clicked])
        if (node && !shown.nodes.includes(node)) shown.nodes.push(node);
      drawing.draw(shown);
      drawing.pick(state.clicked);
      mark();
      const counted = shown.nodes.filter(g.counted).length;
      count.textContent = `${counted} of ${g.nodes.filter(g.counted).length} nodes and ${shown.edges.length} of ${g.edges.length} edges that are kept on this page; ${CLT.count(g.active)} features are active.`;
    }
    function drawNode() {
      side.replaceChildren(
        state.clicked
          ? CLT.circuitNode(g, state.clicked, {
              ...{ sprites, catalogue, called, state },
              pinned: (node) => state.pins.includes(node),
              note: (node) => state.notes.get(node.id) || "",
              live: CLT.circuitLive(g, data, which),
              on: { pick, point, pin, note, split },
            })
          : CLT.empty("Click a node: its feature's card, what it reads and where it goes."),
      );
    }
    function drawPins() {
      const real = CLT.live.on && !g.summed ? (sets) => CLT.circuitReal(data, which, sets) : null;
      const command = CLT.page("live").needs;
      const why = real
        ? ""
        : g.summed
          ? "Nodes of a summed graph have no place, so that none can be changed."
          : ["For real changes the model must run: ", h("code", {}, command)];
      pinned.replaceChildren(
        CLT.circuitPins(g, state, { called, why, title: `${data.key} ${g.targets[0]}`, on: { pick, changed, real } }),
      );
    }
    function pick(node) {
      state.clicked = node === state.clicked ? null : node;
      const there = !state.clicked || drawing.has(state.clicked);
      if (there) drawing.pick(state.clicked);
      else draw();
      drawNode();
      tell();
    }
    function pin(node) {
      changed(state.pins.includes(node) ? { unpin: node } : { pin: node });
      drawNode();
      side.querySelector("header button")?.focus();
    }
    function changed({ pin: one, unpin, group, dissolve } = {}) {
      if (one) state.pins.push(one);
      if (unpin) {
        state.pins = state.pins.filter((node) => node !== unpin);
        for (const entry of state.groups) entry.nodes = entry.nodes.filter((node) => node !== unpin);
        state.groups = state.groups.filter((entry) => entry.nodes.length);
      }
      if (group) state.groups.push(group);
      if (dissolve) state.groups = state.groups.filter((entry) => entry !== dissolve);
      if (unpin) drawNode();
      mark();
      drawPins();
      tell();
    }
    function note(node, text) {
      if (text.trim()) state.notes.set(node.id, text.trim());
      else state.notes.delete(node.id);
      mark();
      tell();
    }
    function split() {
      state.heads = !state.heads;
      drawNode();
      tell();
      side.querySelector("button.split")?.focus();
    }

    // -- controls
    const percent = (v) => `${Math.round(100 * v)} %`;
    const output = h("output", {}, percent(state.share));
    const slider = h("input", {
      type: "range",
      min: 0.05,
      max: 1,
      step: 0.01,
      value: state.share,
      "aria-label": "Share of the influence that is shown",
      oninput: (e) => {
        state.share = Number(e.target.value);
        output.textContent = percent(state.share);
        draw();
        tell();
      },
    });
    const words = h("textarea", {
      rows: 2,
      placeholder: "What this circuit says, in your words; kept in the address",
      "aria-label": "Note on this circuit",
      onchange: (e) => {
        state.text = e.target.value.trim();
        tell();
      },
    });
    words.value = state.text;
    const others =
      data.circuits.length > 1
        ? CLT.select(
            "Answer",
            data.circuits.map((one, k) => [k, one.targets.join("; ")]),
            which,
            (v) => CLT.go("circuit", [image], { target: v === "0" ? "" : v }),
          )
        : null;
    const { replacement, completeness } = g.scores;
    const card = h(
      "section",
      { class: "card circuitcard" },
      h(
        "div",
        { class: "tools" },
        others,
        h("label", { class: "share" }, "influence", slider, output),
        CLT.select(
          "edges",
          EDGES.map((n) => [n, n === 3000 ? "all" : n]),
          state.edges,
          (v) => {
            state.edges = Number(v);
            draw();
            tell();
          },
        ),
      ),
      count,
      drawing.box,
      CLT.circuitLegend(g),
    );
    draw();
    drawNode();
    drawPins();
    const label = (await CLT.load("report")).classnames[data.label];
    return [
      h(
        "div",
        { class: "row between" },
        h("h1", {}, `Circuit: ${g.targets.join("; ")}`),
        h(
          "div",
          { class: "row" },
          sprites.page[image] === "1" ? h("a", { href: CLT.href("image", [image]) }, "the image's page") : null,
          h("a", { href: CLT.href("circuit") }, "all circuits"),
        ),
      ),
      h(
        "p",
        { class: "lead" },
        `${g.targets.map((name, t) => `${name}: ${CLT.fixed(g.nodes.find((node) => node.kind === "target" && node.feature === t).activation, 2)} logits`).join("; ")}. ${g.units === "target" ? "Each edge is what one node adds to the answer by way of another" : "Each edge is what one node adds to the code or the logit above it"}, all else held: with biases and what is not shown they sum to it exactly. `,
        `Replacement score ${CLT.num(replacement)}, completeness ${CLT.num(completeness)}.`,
        h("br"),
        h("span", { class: "ci" }, data.key, label ? `, labelled ${label}` : ""),
      ),
      h(
        "div",
        { class: "circuitpage" },
        h(
          "div",
          { class: "stack circuitside" },
          h("section", { class: "card picturecard", "aria-label": "The picture" }, picker.box, said, picker.cls),
          h("section", { class: "card" }, h("h2", {}, "Note"), words),
        ),
        h("div", { class: "stack" }, card, h("div", { class: "circuitparts" }, side, pinned)),
      ),
    ];
  }
  CLT.circuitPage = page;
})();
