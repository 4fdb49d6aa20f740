// Features over the layers: the columns of a layer, and features in a row from layer to layer.
(() => {
  "use strict";
  const { h } = CLT;
  const two = (n) => String(n).padStart(2, "0");

  // what makes a feature of the layer before the nearest one
  CLT.LINKS = {
    edges: {
      name: "edges",
      about:
        "by the strongest edge: what the earlier feature adds to the images' classes by way of the later one, in logits an image.",
      show: (v) => CLT.num(v, 2),
    },
    weights: {
      name: "weights",
      about: "by the cosine of what the earlier feature writes and what the later one reads.",
      show: (v) => CLT.fixed(v, 2),
    },
    profiles: {
      name: "activity",
      about: "by Spearman's correlation, over images, of how strongly the two fire.",
      show: (v) => CLT.fixed(v, 2),
    },
  };

  // a layer's numbers and, by rule, its features' nearest ones in the layer before
  CLT.evolutionLayer = async (n) => {
    const part = await CLT.load(`evolution/${two(n)}`);
    part.columns ||= Object.fromEntries(
      Object.entries(part).map(([name, value]) => [
        name,
        typeof value === "string"
          ? CLT.column(value)
          : { kept: value.kept, feature: CLT.column(value.feature), value: CLT.column(value.value) },
      ]),
    );
    return part.columns;
  };
  // [[feature of the layer before, how near], ...], nearest first
  CLT.linksBefore = (columns, rule, feature) => {
    const found = columns[rule];
    if (!found) return [];
    return Array.from({ length: found.kept }, (_, k) => feature * found.kept + k)
      .filter((at) => found.feature[at] >= 0)
      .map((at) => [found.feature[at], found.value[at]]);
  };
  // the features of a layer whose nearest one before is this, nearest first
  CLT.linksAfter = (columns, rule, feature) => {
    const found = columns[rule];
    if (!found) return [];
    const out = [];
    for (let f = 0; f * found.kept < found.feature.length; f++)
      if (found.feature[f * found.kept] === feature) out.push([f, found.value[f * found.kept]]);
    return out.sort((a, b) => b[1] - a[1]);
  };

  // one feature: the place where it fires most, its name, its numbers
  function cell({ catalogue: c, sprites, onpick }, layer, feature, numbers, picked) {
    const i = c ? layer * c.size + feature : null;
    const crop = h("span", { class: "crop" });
    if (c)
      CLT.crops(c, i).then(([first]) => {
        if (first) crop.append(CLT.cropThumb(c, sprites, first));
      });
    const id = `L${layer} · ${feature}`;
    return h(
      "div",
      { class: `linked ${picked ? "picked" : ""}` },
      h("button", { type: "button", "aria-label": `Follow ${id}`, onclick: () => onpick(layer, feature) }, crop),
      c ? h("a", { href: c.href(i) }, id) : h("b", {}, id),
      c ? CLT.namePill(c, i) : null,
      h("small", {}, `${CLT.percent(numbers.frequency)} · I ${CLT.fixed(numbers.moran, 2)}`),
    );
  }

  // path: [[layer, feature, how near it is to the one before, or null], ...], earlier layers first
  CLT.featureStrip = async (world, path, rule, picked) => {
    const parts = [];
    for (const [layer, feature, value] of path) {
      const columns = await CLT.evolutionLayer(layer);
      const numbers = { frequency: columns.frequency[feature], moran: columns.moran[feature] };
      if (parts.length)
        parts.push(
          h(
            "span",
            { class: "step" },
            h("span", { "aria-hidden": "true" }, "→"),
            h("b", {}, CLT.LINKS[rule].show(value)),
          ),
        );
      parts.push(cell(world, layer, feature, numbers, picked && picked[0] === layer && picked[1] === feature));
    }
    return h("div", { class: "linkstrip" }, parts);
  };
})();
