// Pinned nodes: grouped under names, what lies between the groups, and what happens when they are changed.
(() => {
  "use strict";
  const { h } = CLT;
  const FACTORS = [
    ["0", "taken away"],
    ["0.5", "halved"],
    ["2", "doubled"],
  ];
  const signed = (v, digits = 2) => `${v > 0 ? "+" : ""}${CLT.fixed(v, digits)}`;

  // each pinned node alone, and every group: {name, nodes}
  CLT.pinnedParts = (g, { pins, groups }, called) => {
    const grouped = new Set(groups.flatMap((group) => group.nodes));
    const single = pins.filter((node) => !grouped.has(node));
    return [
      ...groups.map((group) => ({ ...group, group })),
      ...single.map((node) => ({ name: CLT.circuitName(g, node, called(node)), nodes: [node], group: null })),
    ];
  };
  // the file that `steer`, `debias` and `NodeSet.from_json` read
  CLT.nodeSet = (nodes, factor, name) => ({
    name,
    nodes: nodes.map((node) => ({
      kind: node.kind,
      layer: node.layer,
      feature: node.kind === "feature" ? node.feature : null,
      position: node.position < 0 ? null : node.position,
      action: "scale",
      value: factor,
    })),
  });

  function save(content, name) {
    const url = URL.createObjectURL(new Blob([`${JSON.stringify(content, null, 2)}\n`], { type: "application/json" }));
    const link = h("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // edges from one group to another, summed; targets are groups of their own
  function between(g, parts) {
    const ends = [
      ...parts,
      ...g.nodes
        .filter((node) => node.kind === "target")
        .map((node) => ({ name: g.targets[node.feature], nodes: [node] })),
    ];
    const owner = new Map();
    for (const part of ends) for (const node of part.nodes) owner.set(node, part);
    const sums = new Map();
    for (const edge of g.edges) {
      const [a, b] = [owner.get(edge.source), owner.get(edge.target)];
      if (!a || !b || a === b) continue;
      if (!sums.has(a)) sums.set(a, new Map());
      sums.get(a).set(b, (sums.get(a).get(b) || 0) + edge.weight);
    }
    return [...sums].flatMap(([a, to]) => [...to].map(([b, weight]) => ({ a, b, weight })));
  }

  // state: {pins, groups, factor}; on: {pick, changed, real(parts): promise of what the model does, or null}
  CLT.circuitPins = (g, state, { called, on, why, title }) => {
    const parts = CLT.pinnedParts(g, state, called);
    const chosen = new Set(parts.filter((part) => !part.group));
    const changed = (nodes) => nodes.filter(g.changed);
    const factor = Number(state.factor);
    const sets = parts
      .map((part) => ({ name: part.name, nodes: changed(part.nodes) }))
      .filter((set) => set.nodes.length);
    const all = changed(state.pins);
    const lines =
      sets.length > 1 ? [...sets, { name: `all ${all.length} nodes together`, nodes: all, strong: true }] : sets;
    const real = new Map();
    const result = h("div", { "aria-live": "polite" });

    const row = (part) => {
      const { group, nodes } = part;
      const button = (text, label, onclick) =>
        h("button", { type: "button", class: "link", "aria-label": label, onclick }, text);
      const item = (node) =>
        h(
          "li",
          {},
          button(CLT.circuitName(g, node, called(node)), `Show ${CLT.circuitName(g, node)}`, () => on.pick(node)),
          " ",
          button("unpin", `Unpin ${CLT.circuitName(g, node)}`, () => on.changed({ unpin: node })),
        );
      if (!group)
        return h(
          "li",
          {},
          h("input", {
            type: "checkbox",
            checked: true,
            "aria-label": `Into the group: ${part.name}`,
            onchange: (e) => (e.target.checked ? chosen.add(part) : chosen.delete(part)),
          }),
          " ",
          button(part.name, `Show ${part.name}`, () => on.pick(nodes[0])),
          " ",
          button("unpin", `Unpin ${part.name}`, () => on.changed({ unpin: nodes[0] })),
        );
      return h(
        "li",
        { class: "group" },
        h("input", {
          value: group.name,
          maxlength: 60,
          "aria-label": `Name of the group ${group.name}`,
          onchange: (e) => {
            group.name = e.target.value.trim() || group.name;
            on.changed();
          },
        }),
        " ",
        button("dissolve", `Dissolve ${group.name}`, () => on.changed({ dissolve: group })),
        h("ul", {}, nodes.map(item)),
      );
    };
    const field = h("input", {
      name: "group",
      maxlength: 60,
      placeholder: "wheels",
      "aria-label": "Name of the new group",
    });
    const grouping = h(
      "form",
      {
        class: "row",
        onsubmit: (e) => {
          e.preventDefault();
          const nodes = [...chosen].flatMap((part) => part.nodes);
          if (nodes.length)
            on.changed({ group: { name: field.value.trim() || `group ${state.groups.length + 1}`, nodes } });
        },
      },
      field,
      h("button", { type: "submit", class: "plain" }, "Group the ticked"),
    );

    function table() {
      const T = g.targets.length;
      const answered = {
        predicted: (set) =>
          g.predict?.known(set.nodes) ? g.predict.predict(set.nodes.map((node) => [node, factor])).targets : null,
        moved: (set) => real.get(set)?.predicted,
        real: (set) => real.get(set)?.observed,
      };
      const words = { predicted: "predicted change", moved: "with the whole change", real: "real change" };
      const shown = Object.keys(words).filter((which) => which !== "moved" || real.size);
      const said = (set, which) => {
        const found = answered[which](set);
        return g.targets.map((_, t) => h("td", { class: which }, found ? signed(found[t]) : "–"));
      };
      result.replaceChildren(
        CLT.scroll(
          "What happens",
          h(
            "table",
            { class: "plain what" },
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                h("th", { scope: "col" }, FACTORS.find(([value]) => value === state.factor)[1]),
                shown.map((which) =>
                  g.targets.map((name) => h("th", { scope: "col" }, T > 1 ? `${name}: ${words[which]}` : words[which])),
                ),
                real.size ? h("th", { scope: "col", class: "t" }, "seen as then") : null,
              ),
            ),
            h(
              "tbody",
              {},
              lines.map((set) =>
                h(
                  "tr",
                  { class: set.strong ? "strong" : null },
                  h("th", { scope: "row" }, set.name),
                  shown.map((which) => said(set, which)),
                  real.size ? h("td", { class: "t" }, real.get(set)?.seen ?? "–") : null,
                ),
              ),
            ),
          ),
        ),
      );
    }
    const problem = h("p", { class: "note", role: "status" });
    const ask = h(
      "button",
      {
        type: "button",
        class: "plain",
        onclick: async () => {
          ask.disabled = true;
          problem.textContent = "The model is at work …";
          try {
            const found = await on.real(lines.map((set) => CLT.nodeSet(set.nodes, factor, set.name)));
            found.forEach((one, n) => {
              real.set(lines[n], one);
            });
            problem.textContent = "";
            table();
          } catch (error) {
            problem.textContent = error.message;
          }
          ask.disabled = false;
        },
      },
      "Ask the model",
    );
    const answers = g.predict !== null || Boolean(on.real);
    if (lines.length && answers) table();
    const edges = between(g, parts).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    return h(
      "section",
      { class: "card pinscard" },
      h("h2", {}, "Pinned"),
      state.pins.length
        ? [
            h("ul", { class: "pins" }, parts.map(row)),
            parts.some((part) => !part.group) ? grouping : null,
            edges.length
              ? h(
                  "details",
                  { open: true },
                  h("summary", {}, "Between them"),
                  CLT.scroll(
                    "Between the pinned",
                    h(
                      "table",
                      { class: "plain effects between" },
                      h(
                        "tbody",
                        {},
                        edges
                          .slice(0, 20)
                          .map(({ a, b, weight }) =>
                            h(
                              "tr",
                              {},
                              h("th", { scope: "row" }, `${a.name} → ${b.name}`),
                              h("td", { class: weight < 0 ? "minus" : "plus" }, signed(weight, 3)),
                            ),
                          ),
                      ),
                    ),
                  ),
                )
              : null,
            h("h3", {}, "Without them, or with more"),
            lines.length
              ? [
                  answers
                    ? h(
                        "div",
                        { class: "tools" },
                        CLT.segments("What is done to them", FACTORS, state.factor, (value) => {
                          state.factor = value;
                          on.changed();
                        }),
                      )
                    : null,
                  h(
                    "p",
                    { class: "note" },
                    answers
                      ? "Predicted: by the circuit to first order, patterns and norms at work (docs/circuits.md); with the whole change: no longer to first order, so that it is no sum over nodes. Real: in the live model, whose own MLPs answer. "
                      : null,
                    why,
                  ),
                  result,
                  h(
                    "div",
                    { class: "row" },
                    on.real ? ask : null,
                    h(
                      "button",
                      {
                        type: "button",
                        class: "plain",
                        onclick: () =>
                          save(CLT.nodeSet(all, factor, title), `${title.replace(/[^\w.-]+/g, "-")}.nodes.json`),
                      },
                      "Download as a node set",
                    ),
                  ),
                  problem,
                ]
              : h("p", { class: "note" }, "Features and errors can be changed; none of these is one."),
          ]
        : h(
            "p",
            { class: "note" },
            "Pin nodes to group them under a name, and to ask what happens without them. The address keeps all of it.",
          ),
    );
  };
})();
