// How far predicted effects go with real ablation: what `test` found.
(() => {
  "use strict";
  const { h } = CLT;
  const TARGETS = {
    margin: "On the margin: predicted class minus runner-up",
    class: "On the class: predicted minus mean of all",
  };
  const METHODS = { gradient: "one gradient", integrated: "integrated" };
  const range = (i) => (i.low === null ? "" : `${CLT.fixed(i.low, 3)} to ${CLT.fixed(i.high, 3)}`);

  // one line for a card: the margin, with one gradient
  CLT.effectCheckLine = (effects, layer) => {
    const found = effects?.margin?.gradient;
    if (!found?.all) return null;
    const say = (a) => `${CLT.fixed(a.correlation.value, 2)} (95 %: ${range(a.correlation)})`;
    const own = found[`layer_${layer}`];
    return h(
      "p",
      { class: "note" },
      `Predicted from one gradient. Against real ablation the prediction's correlation is ${say(found.all)} for the margin, over ${CLT.count(found.all.n)} pairs of a feature and an image${own ? `; in this layer ${CLT.fixed(own.correlation.value, 2)}` : ""}.`,
    );
  };
  // every target, method and part
  CLT.effectCheck = (effects) => {
    if (!effects) return null;
    const heads = [
      { name: "Method", text: true },
      { name: "Features", text: true },
      "correlation, 95 %",
      "slope",
      "equal signs",
      "pairs",
      "images",
    ];
    return Object.entries(TARGETS)
      .filter(([target]) => effects[target])
      .map(([target, name]) => {
        const rows = Object.entries(METHODS).flatMap(([method, how]) =>
          Object.entries(effects[target][method] || {}).map(([part, a]) => [
            how,
            part.replace("layer_", "layer "),
            h("span", {}, CLT.fixed(a.correlation.value, 3), " ", h("span", { class: "ci" }, range(a.correlation))),
            CLT.fixed(a.slope, 3),
            CLT.percent(a.signs),
            CLT.count(a.n),
            CLT.count(a.images),
          ]),
        );
        const table = CLT.table(heads, rows, { sortable: false, cls: "compact" });
        return h(
          "div",
          {},
          h("p", { class: "note strong" }, name),
          CLT.scroll(`Predicted and real effects, ${name}`, table),
        );
      });
  };
  CLT.EFFECT_CHECK_NOTE =
    "Features were really ablated, one at a time: what each writes was taken out of the live model's MLP outputs. Slope: of the real effect on the predicted one. Half of the features are the strongest, half drawn from the others; intervals are over images. Integrated: gradients at two nodes of Gauss and Legendre on the path from the code to 0.";
})();
