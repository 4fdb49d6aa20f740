// The circuit as a drawing: nodes are buttons over an SVG of edges; arrow keys go from node to node.
(() => {
  "use strict";
  const { h, svg } = CLT;
  const WORDS = {
    feature: "feature",
    rest: "features left out",
    error: "error",
    skip: "linear skip",
    input: "input",
    bias: "bias",
    target: "answer",
    attention: "attention's feature",
    attention_error: "attention's error",
  };
  const SIGNS = { error: "e", attention_error: "e", skip: "s", bias: "b", rest: "…", attention: "a" };

  // what a node is called: in a sentence, in lists
  CLT.circuitName = (g, node, called) => {
    const where = node.place ? ` at ${CLT.positionName(g, node)}` : "";
    if (node.kind === "target") return g.targets[node.feature];
    if (node.kind === "feature") return `L${node.layer} · ${node.feature}${called ? ` ${called}` : ""}${where}`;
    if (node.kind === "attention") return `attention ${node.layer} · ${node.feature}${where}`;
    if (node.kind === "input") return `input${where}`;
    if (node.kind === "bias")
      return node.layer < 0 ? "bias of the read-out" : `bias of ${g.biases[node.feature]}, layer ${node.layer}`;
    return `${WORDS[node.kind]}, layer ${node.layer}${where}`;
  };
  CLT.positionName = (g, node) => {
    const patch = node.position - g.prefix;
    if (patch < 0) return node.place === "CLS" ? "[CLS]" : node.place;
    return `row ${Math.floor(patch / g.grid[1]) + 1}, column ${(patch % g.grid[1]) + 1}`;
  };
  // a patch of the image itself
  CLT.patchOf = (g, position) => {
    const patch = position - g.prefix;
    if (patch < 0) return null;
    const [rows, columns] = g.grid;
    const part = (k, n) => (n > 1 ? (100 * k) / (n - 1) : 0);
    return h("span", {
      class: "patch",
      style: {
        "background-image": `url("${g.picture}")`,
        "background-size": `${columns * 100}% ${rows * 100}%`,
        "background-position": `${part(patch % columns, columns)}% ${part(Math.floor(patch / columns), rows)}%`,
      },
    });
  };

  function face(g, node, { sprites, catalogue }) {
    if (node.kind === "target")
      return [h("b", { class: "cut" }, g.targets[node.feature]), h("span", {}, CLT.fixed(node.activation, 2))];
    if (node.kind === "input") return CLT.patchOf(g, node.position) || h("span", { class: "sign" }, node.place || "in");
    if (node.kind !== "feature") return h("span", { class: "sign" }, SIGNS[node.kind]);
    const box = h("span", { class: "crop" });
    const instead = () =>
      box.replaceChildren(CLT.patchOf(g, node.position) || h("span", { class: "sign" }, node.feature));
    const i = catalogue ? node.layer * catalogue.size + node.feature : -1;
    if (!catalogue) instead();
    else
      CLT.crops(catalogue, i).then(([best]) => {
        if (!best) return instead();
        box.append(CLT.cropThumb(catalogue, sprites, best));
        return box;
      }, instead);
    return box;
  }

  // on: {point(node or null), pick(node)}; called(node): a feature's name
  CLT.circuitDrawing = (g, { sprites, catalogue, called, on }) => {
    const lines = svg("svg", { class: "edges", "aria-hidden": "true" });
    const space = h("div", { class: "circuit-space" }, lines);
    const box = h(
      "div",
      {
        class: "circuit",
        role: "region",
        "aria-label": "The circuit: arrow keys go from node to node",
        "data-scroll": "circuit",
      },
      space,
    );
    const buttons = new Map();
    let shown = { nodes: [], edges: [] };
    let layout = null;
    let current = null;

    function button(node) {
      if (buttons.has(node)) return buttons.get(node);
      const made = h(
        "button",
        {
          type: "button",
          class: `cnode ${node.kind}`,
          "data-id": node.id,
          "aria-label":
            node.kind === "target"
              ? null
              : `${CLT.circuitName(g, node, called(node))}${node.kind === "feature" ? `, code ${CLT.num(node.activation)}` : ""}`,
          "aria-pressed": "false",
          tabindex: -1,
          onclick: () => on.pick(node),
          onpointerenter: (e) => e.pointerType === "mouse" && light(node),
          onpointerleave: (e) => e.pointerType === "mouse" && light(null),
          onfocus: () => {
            current = node;
            tabs();
            light(node);
          },
          onblur: () => light(null),
        },
        face(g, node, { sprites, catalogue }),
      );
      buttons.set(node, made);
      return made;
    }
    const tabs = () => {
      for (const node of shown.nodes) button(node).tabIndex = node === current ? 0 : -1;
    };
    // the nearest node in a direction
    space.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const from = current && layout.at.get(current);
      if (!way || !from) return;
      event.preventDefault();
      let best = null;
      let least = Infinity;
      for (const node of shown.nodes) {
        const to = layout.at.get(node);
        const [dx, dy] = [to.x + to.width / 2 - from.x - from.width / 2, to.y - from.y];
        const along = dx * way[0] + dy * way[1];
        const aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
        if (along > 1 && along + 3 * aside < least) [best, least] = [node, along + 3 * aside];
      }
      if (best) button(best).focus();
    });

    const curve = (edge) => {
      const [a, b] = [layout.at.get(edge.source), layout.at.get(edge.target)];
      const [x1, y1, y2] = [a.x + a.width / 2, a.y, b.y + b.height];
      // an answer is as wide as the drawing: it is reached straight up
      const x2 = edge.target.kind === "target" ? CLT.clamp(x1, b.x + 8, b.x + b.width - 8) : b.x + b.width / 2;
      const bend = Math.max(18, Math.abs(y1 - y2) * 0.45);
      return `M${x1} ${y1}C${x1} ${y1 - bend} ${x2} ${y2 + bend} ${x2} ${y2}`;
    };
    const inLogits = (node) => node.kind === "target" || g.units === "target";
    let paths = [];
    function draw(next) {
      shown = next;
      layout = CLT.circuitLayout(g, shown.nodes);
      space.style.width = `${layout.width}px`;
      space.style.height = `${layout.height + 26}px`;
      for (const [name, value] of Object.entries({ width: layout.width, height: layout.height }))
        lines.setAttribute(name, value);
      // contributions to codes and to logits are of different sizes
      const largest = { true: 0, false: 0 };
      for (const edge of shown.edges) {
        const kind = inLogits(edge.target);
        largest[kind] = Math.max(largest[kind], Math.abs(edge.weight));
      }
      paths = shown.edges.map((edge) => {
        const part = Math.abs(edge.weight) / largest[inLogits(edge.target)];
        const path = svg("path", {
          d: curve(edge),
          class: edge.weight < 0 ? "minus" : "plus",
          "stroke-width": (0.6 + 5 * Math.sqrt(part)).toFixed(2),
        });
        return [edge, path];
      });
      lines.replaceChildren(...paths.map(([, path]) => path).reverse());
      const bands = layout.bands.map((band) =>
        h(
          "div",
          { class: "band", style: { top: `${band.top}px`, height: `${band.height}px` } },
          h("span", {}, band.text),
        ),
      );
      const places = layout.columns.map((column) =>
        h(
          "span",
          {
            class: "place",
            style: { left: `${column.x}px`, width: `${column.width}px`, top: `${layout.height + 4}px` },
          },
          column.text,
        ),
      );
      const nodes = shown.nodes.map((node) => {
        const { x, y, width, height } = layout.at.get(node);
        const made = button(node);
        made.style.cssText = `left:${x}px;top:${y}px;width:${width}px;height:${height}px`;
        return made;
      });
      const focused = nodes.includes(document.activeElement) ? document.activeElement : null;
      space.replaceChildren(...bands, lines, ...places, ...nodes);
      focused?.focus({ preventScroll: true });
      if (!layout.at.has(current))
        current = shown.nodes.find((node) => node.kind === "target") || shown.nodes[0] || null;
      tabs();
      light(null);
    }
    let kept = null;
    // the edges and neighbours of a node; null: of the one that was picked, or all
    function light(node) {
      const lit = node || kept;
      space.classList.toggle("lit", Boolean(lit));
      const near = new Set([lit]);
      for (const [edge, path] of paths) {
        const mine = edge.source === lit || edge.target === lit;
        path.classList.toggle("on", mine);
        if (mine) for (const end of [edge.source, edge.target]) near.add(end);
      }
      for (const other of shown.nodes) button(other).classList.toggle("near", near.has(other));
      on.point(lit);
    }
    return {
      box,
      draw,
      light,
      pick: (node) => {
        kept = node;
        for (const other of shown.nodes) button(other).setAttribute("aria-pressed", String(other === node));
        light(null);
      },
      mark: (name, wanted) => {
        for (const node of g.nodes) if (buttons.has(node)) buttons.get(node).classList.toggle(name, wanted(node));
      },
      focus: (node) => buttons.get(node)?.focus(),
      has: (node) => layout?.at.has(node),
    };
  };

  CLT.circuitLegend = (g) => {
    const there = new Set(g.nodes.map((node) => node.kind));
    const item = (kind) =>
      h(
        "span",
        { class: "item" },
        h("i", { class: `cnode ${kind}` }, h("span", { class: "sign" }, SIGNS[kind] || "")),
        WORDS[kind],
      );
    return h(
      "p",
      { class: "note legend" },
      ["error", "skip", "bias", "rest", "attention", "attention_error"].filter((kind) => there.has(kind)).map(item),
      h("span", { class: "item" }, h("i", { class: "line plus" }), "adds"),
      h("span", { class: "item" }, h("i", { class: "line minus" }), "takes away"),
      h(
        "span",
        {},
        g.units === "target" ? "Width: how much." : "Width: how much (to logits and to codes each by the largest).",
      ),
    );
  };
})();
