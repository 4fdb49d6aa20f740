// What was trained, on what, and the numbers to look at first.
(function () {
  "use strict";
  const { h } = CLT;
  const I = (i) => (i ? `${CLT.percent(i.low)} to ${CLT.percent(i.high)}` : "");
  const tile = (name, value, small) => h("div", { class: "tile" }, h("span", {}, name), h("b", {}, value), h("small", {}, small || " "));

  function tiles(e) {
    const out = [], last = e.layers - 1;
    const r = e.reconstruction;
    if (r) {
      const set = r.fvu.all ? "all" : Object.keys(r.fvu)[0];
      out.push(tile("Unexplained variance", CLT.percent(r.fvu[set].mean), `FVU, mean over layers, ${CLT.tokenName(set)}`));
      if (r.l0[set]) out.push(tile("Active features", CLT.num(r.l0[set].mean), "L0 a token, mean over layers"));
      if (r.dead[set]) out.push(tile("Dead features", CLT.percent(r.dead[set].mean), `on this split, ${CLT.tokenName(set)}`));
    }
    for (const [task, metric, name] of [["zero_shot", "top1", "Zero-shot top-1"], ["multilabel", "map", "mAP"]]) {
      const arms = e[task] ? e[task].arms : [];
      const find = (kind) => arms.find((a) => a.kind === kind && (kind === "original" || (a.first === 0 && a.last === last && a.tokens === "all")));
      const original = find("original"), replaced = find("replaced");
      if (original) out.push(tile(`${name}, original CLIP`, CLT.percent(original[metric].value), I(original[metric])));
      if (replaced) out.push(tile(`${name}, all MLPs replaced`, CLT.percent(replaced[metric].value), I(replaced[metric])));
      if (replaced && replaced.drop) out.push(tile("Lost by replacing", `${CLT.fixed(100 * replaced.drop.value, 1)} pp`, `${CLT.fixed(100 * replaced.drop.low, 1)} to ${CLT.fixed(100 * replaced.drop.high, 1)} pp, same images`));
    }
    return out;
  }

  const record = (rows) => h("dl", { class: "record" }, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));

  CLT.pages.summary = async () => {
    const report = await CLT.load("report"), e = report.evaluation;
    const cards = [["reconstruction", "Reconstruction", "How much of each layer's MLP output the transcoder rebuilds."], ["cascade", "Replacement", "What CLIP still knows with its MLPs replaced, beside controls."], ["contributions", "Contributions", "Which layers' features write each layer's output."],
      ["faithfulness", "Faithfulness", "Whether the terms that score high are the ones that matter."], ["population", "Generalisation", "Held-out numbers against what the training split makes likely."], ["features", "Features", "What each feature responds to."], ["images", "Images", "One image: its features, and its logit term by term."], ["retrieval", "Retrieval", "Images that are alike by their codes, layer by layer."]];
    return [
      h("h1", {}, report.title), h("p", { class: "lead" }, report.lead),
      e ? h("div", { class: "tiles" }, tiles(e)) : CLT.empty("This run was not evaluated yet. ", h("code", {}, report.commands.test), " measures what the pages show."),
      report.notes.length ? h("ul", { class: "note" }, report.notes.map((n) => h("li", {}, n))) : null,
      h("nav", { class: "doors", "aria-label": "What there is to see" }, cards.map(([p, t, text]) => h("a", { href: CLT.href(p) }, h("b", {}, t), h("span", {}, text)))),
      h("div", { class: "masonry" },
        report.record.map(([title, rows]) => h("section", { class: "card" }, h("h3", {}, title), record(rows))),
        report.config ? h("section", { class: "card" }, h("details", {}, h("summary", { style: { margin: 0 } }, "config.yaml"), h("pre", { class: "scroll", style: { font: "12.5px/1.5 var(--mono)", margin: "8px 0 0" } }, report.config))) : null),
    ];
  };
})();
