// What is known of one node: its feature's card, what it reads and where it goes, by head on request.
(() => {
  "use strict";
  const { h } = CLT;
  const LISTED = 10;
  const SHOTS = 6;
  const signed = (v, digits = 3) => `${v > 0 ? "+" : ""}${CLT.num(v, digits)}`;

  // the strongest images of a feature, and the way to its card
  function cardOf(node, { sprites, catalogue, called }) {
    const shots = h("div", { class: "shots small" });
    const href = CLT.href("feature", [node.layer, node.feature]);
    const { chunk } = CLT.get("features") || {};
    if (catalogue && chunk) {
      const file = `cards/${String(node.layer).padStart(2, "0")}_${String(Math.floor(node.feature / chunk)).padStart(4, "0")}`;
      CLT.load(file).then(
        (part) => {
          const card = part.cards[node.feature % chunk];
          if (!card) return shots.append(CLT.empty("This feature has no card."));
          const maps = CLT.unpackMaps(part.maps, catalogue.positions);
          return shots.append(
            ...card.top.slice(0, SHOTS).map(([image, code, n]) =>
              CLT.thumb(sprites, image, {
                map: maps(n, card.peak),
                peak: card.peak,
                grid: catalogue.grid,
                alt: `image with code ${CLT.num(code)}`,
              }),
            ),
          );
        },
        (error) => shots.append(CLT.empty(error.message)),
      );
    }
    return [
      h(
        "h3",
        {},
        h("a", { href, class: "cardlink" }, `Feature L${node.layer} · ${node.feature}`),
        " ",
        h("span", { class: "ci" }, called(node)),
      ),
      catalogue ? shots : CLT.empty("No cards: features were not collected."),
    ];
  }

  function partsOf(g, edge) {
    const found = g.split(edge);
    if (!found) return null;
    const items = found.parts.map((part) => [`attention ${part.layer}, head ${part.head}`, part.value]);
    const least = 1e-3 * Math.max(...items.map(([, v]) => Math.abs(v)), Math.abs(found.direct));
    items.push(["same position, no attention", found.direct], ["other heads", found.others]);
    return h(
      "ul",
      { class: "heads" },
      items.filter(([, v]) => Math.abs(v) > least).map(([name, v]) => h("li", {}, name, " ", h("b", {}, signed(v)))),
    );
  }

  // state: {heads}: whether edges are split; on: {pick, point, pin, note, split}
  CLT.circuitNode = (g, node, tie) => {
    const { called, on, state, pinned, note, live } = tie;
    const row = (edge, end) =>
      h(
        "tr",
        { onpointerenter: () => on.point(end), onpointerleave: () => on.point(null) },
        h(
          "th",
          { scope: "row" },
          h(
            "button",
            { type: "button", class: "link", onclick: () => on.pick(end) },
            CLT.circuitName(g, end, called(end)),
          ),
          state.heads && end === edge.source ? live.heads(edge) || partsOf(g, edge) : null,
        ),
        h("td", { class: edge.weight < 0 ? "minus" : "plus" }, signed(edge.weight)),
      );
    const table = (title, edges, end, note) => {
      const order = [...edges].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
      const rows = (list) =>
        h(
          "table",
          { class: "plain effects" },
          h(
            "tbody",
            {},
            list.map((edge) => row(edge, end(edge))),
          ),
        );
      return h(
        "div",
        {},
        h("h3", {}, title),
        note && h("p", { class: "note" }, note),
        order.length
          ? CLT.scroll(title, rows(order.slice(0, LISTED)))
          : h("p", { class: "note" }, "None on this page."),
        order.length > LISTED
          ? h(
              "details",
              {},
              h("summary", {}, `${order.length - LISTED} more`),
              CLT.scroll(title, rows(order.slice(LISTED))),
            )
          : null,
      );
    };
    const reads = ["feature", "target", "attention"].includes(node.kind);
    const listed = node.into.reduce((sum, edge) => sum + edge.weight, 0);
    const unit = node.kind === "target" || g.units === "target" ? "logits" : "code";
    const numbers = [
      node.kind === "target" ? `${CLT.fixed(node.activation, 3)} logits` : null,
      ["feature", "attention"].includes(node.kind) ? `code ${CLT.num(node.activation)}` : null,
      g.counted(node) ? `${CLT.percent(node.influence / g.total)} of the influence` : null,
    ].filter(Boolean);
    const area = h("textarea", {
      rows: 2,
      "aria-label": "Note on this node",
      placeholder: "A note, kept in the address",
      onchange: (e) => on.note(node, e.target.value),
    });
    area.value = note(node);
    return h(
      "section",
      { class: "card nodecard", "aria-live": "polite" },
      h(
        "header",
        {},
        h("h2", {}, CLT.circuitName(g, node)),
        node.kind === "target"
          ? null
          : h(
              "button",
              {
                type: "button",
                class: "plain small",
                "aria-pressed": String(pinned(node)),
                onclick: () => on.pin(node),
              },
              pinned(node) ? "unpin" : "pin",
            ),
      ),
      h("p", { class: "note" }, numbers.join(", ")),
      node.kind === "feature" ? cardOf(node, tie) : null,
      node.kind === "target" ? null : area,
      reads
        ? [
            table(
              "Reads",
              node.into,
              (edge) => edge.source,
              `These sum to ${CLT.num(listed)} of ${CLT.num(node.inputs)} ${unit}: the rest comes from nodes and edges that are not on this page.`,
            ),
            live.split(node)
              ? h(
                  "button",
                  {
                    type: "button",
                    class: "plain small split",
                    "aria-pressed": String(state.heads),
                    onclick: () => on.split(node),
                  },
                  state.heads ? "whole edges" : "split by head",
                )
              : null,
          ]
        : null,
      node.kind === "target" ? null : table("Adds to", node.from, (edge) => edge.target),
    );
  };
})();
