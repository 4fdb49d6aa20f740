// What was trained, on what, and the numbers to look at first.
(() => {
  "use strict";
  const { h } = CLT;
  const I = (i) => (i ? `${CLT.percent(i.low)} to ${CLT.percent(i.high)}` : "");
  const tile = (name, value, small) =>
    h("div", { class: "tile" }, h("span", {}, name), h("b", {}, value), h("small", {}, small || " "));

  function tiles(e) {
    const out = [],
      last = e.layers - 1;
    const r = e.reconstruction;
    if (r) {
      const set = r.fvu.all ? "all" : Object.keys(r.fvu)[0];
      out.push(
        tile("Unexplained variance", CLT.percent(r.fvu[set].mean), `FVU, mean over layers, ${CLT.tokenName(set)}`),
      );
      if (r.l0[set]) out.push(tile("Active features", CLT.num(r.l0[set].mean), "L0 a token, mean over layers"));
      if (r.dead[set])
        out.push(tile("Dead features", CLT.percent(r.dead[set].mean), `on this split, ${CLT.tokenName(set)}`));
    }
    for (const [task, metric, name] of [
      ["zero_shot", "top1", "Zero-shot top-1"],
      ["multilabel", "map", "mAP"],
    ]) {
      const arms = e[task] ? e[task].arms : [];
      const find = (kind) =>
        arms.find(
          (a) => a.kind === kind && (kind === "original" || (a.first === 0 && a.last === last && a.tokens === "all")),
        );
      const original = find("original"),
        replaced = find("replaced");
      if (original) out.push(tile(`${name}, original CLIP`, CLT.percent(original[metric].value), I(original[metric])));
      if (replaced)
        out.push(tile(`${name}, all MLPs replaced`, CLT.percent(replaced[metric].value), I(replaced[metric])));
      if (replaced?.drop)
        out.push(
          tile(
            "Lost by replacing",
            `${CLT.fixed(100 * replaced.drop.value, 1)} pp`,
            `${CLT.fixed(100 * replaced.drop.low, 1)} to ${CLT.fixed(100 * replaced.drop.high, 1)} pp, same images`,
          ),
        );
    }
    return out;
  }

  const record = (rows) =>
    h(
      "dl",
      { class: "record" },
      rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]),
    );

  CLT.pages.summary = async () => {
    const [report, { record: sections, config }] = await Promise.all([CLT.load("report"), CLT.load("summary")]);
    const e = report.evaluation;
    return [
      h("h1", {}, report.title),
      h("p", { class: "lead" }, report.lead),
      e ? h("div", { class: "tiles" }, tiles(e)) : CLT.missing("summary", "This run was not evaluated yet"),
      report.notes.length
        ? h(
            "ul",
            { class: "note" },
            report.notes.map((n) => h("li", {}, n)),
          )
        : null,
      h(
        "nav",
        { class: "doors", "aria-label": "What there is to see" },
        CLT.get("pages")
          .slice(1)
          .filter((page) => !page.under)
          .map((page) => h("a", { href: CLT.href(page.name) }, h("b", {}, page.title), h("span", {}, page.about))),
      ),
      h(
        "div",
        { class: "masonry" },
        sections.map(([title, rows]) => h("section", { class: "card" }, h("h3", {}, title), record(rows))),
        config
          ? h(
              "section",
              { class: "card" },
              h(
                "details",
                {},
                h("summary", { style: { margin: 0 } }, "config.yaml"),
                h("pre", { class: "scroll", style: { font: "12.5px/1.5 var(--mono)", margin: "8px 0 0" } }, config),
              ),
            )
          : null,
      ),
    ];
  };
})();
