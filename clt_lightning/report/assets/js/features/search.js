// Which features are shown, and in which order: presets, free text, a box in the scatter.
(() => {
  "use strict";
  const ENOUGH = 20; // images behind a monosemanticity that says something

  // each keeps some features and has an order of its own; `needs`: a column without which it is not offered
  CLT.PRESETS = [
    {
      key: "clear",
      title: "Clear",
      about: `Active on ${ENOUGH} images or more, the most monosemantic first`,
      keep: (c, i) => c.images[i] >= ENOUGH && c.monosemanticity[i] > -2,
      sort: "monosemanticity",
    },
    {
      key: "effect",
      title: "Large effect",
      about: "The largest effect on the predicted class's logit, root mean square over all images",
      needs: "strength",
      keep: (c, i) => c.strength[i] > 0,
      sort: "strength",
    },
    {
      key: "conflict",
      title: "Does other than it says",
      about: "Named by a class that its effect does not raise, or pushes down",
      needs: "strength",
      keep: (c, i) => c.conflict[i] > 0,
      sort: "strength",
    },
    {
      key: "far",
      title: "Writes far",
      about: `Active on ${ENOUGH} images or more, writing one layer ahead or more on average`,
      keep: (c, i) => c.images[i] >= ENOUGH && c.reach[i] >= 1,
      sort: "reach",
    },
    {
      key: "cls",
      title: "[CLS]",
      about: "More than half of its firings at [CLS]",
      keep: (c, i) => c.cls_share[i] > 0.5,
      sort: "image_frequency",
    },
    {
      key: "dense",
      title: "Dense",
      about: "Active on more than a tenth of all tokens",
      keep: (c, i) => c.frequency[i] > 0.1,
      sort: "frequency",
    },
    {
      key: "rare",
      title: "Rare",
      about: `Active on fewer than ${ENOUGH} images`,
      keep: (c, i) => c.images[i] < ENOUGH,
      sort: "images",
    },
    { key: "all", title: "All", about: "Every feature that fired", keep: () => true, sort: "frequency" },
  ];
  CLT.presetsOf = (c) => CLT.PRESETS.filter((p) => !p.needs || c[p.needs]);

  // "2/623", "L2F623", "l2 · 623", "layer 2 feature 623" name one feature; "623", "feature 623", "#623" one of every
  // layer; "L2" a layer; what is left is looked for in the names of classes and words, a bare number, too
  CLT.parseSearch = (text) => {
    const plain = text.trim().toLowerCase().replace(/\s+/g, " ");
    const both = plain.match(/^(?:l|layer ?)? ?(\d+)(?: ?[:/·.,;\-|] ?| |(?=f))(?:f|feature ?|#)? ?(\d+)$/);
    if (both) return { layer: Number(both[1]), feature: Number(both[2]), words: [] };
    const one = plain.match(/^(f|feature|#)? ?(\d+)$/);
    if (one) return { layer: null, feature: Number(one[2]), words: one[1] ? [] : [one[2]] };
    const first = plain.match(/^(?:l|layer ?)(\d+)(?: (.*))?$/);
    const rest = first ? first[2] || "" : plain;
    return { layer: first ? Number(first[1]) : null, feature: null, words: rest.split(" ").filter(Boolean) };
  };

  // does a feature fit the words? Its name, its strongest class, the nearest class and word
  function byWords(c, words) {
    if (!words.length) return null;
    const hit = (names) => names.map((name) => words.every((w) => name.toLowerCase().includes(w)));
    const classes = hit(c.classnames);
    const near = hit(c.words);
    const kinds = hit(["no name", "", "dense", "position"]);
    const named = new Map(CLT.notes.all().map(([l, f, note]) => [l * c.size + f, note.label || ""]));
    const noted = (i) => named.has(i) && hit([named.get(i)])[0];
    return (i) =>
      noted(i) ||
      (c.name_kind[i] === 1 ? classes[c.lift_class[i]] : kinds[c.name_kind[i]]) ||
      classes[c.class_index[i]] ||
      classes[c.nearest_class[i]] ||
      near[c.nearest_word[i]];
  }

  // state: {preset, layer, text, dead, box: {x: values, y: values, x0, x1, y0, y1} or null}; 1 for every feature that is kept
  CLT.filterFeatures = (c, { preset, layer, text, dead, box }) => {
    const inside = new Uint8Array(c.n);
    const asked = CLT.parseSearch(text);
    const chosen = CLT.presetsOf(c).find((p) => p.key === preset) || CLT.PRESETS.at(-1);
    const fits = byWords(c, asked.words);
    const only = asked.layer ?? (layer === "" ? null : Number(layer));
    const [start, end] = only === null ? [0, c.n] : [Math.min(c.n, only * c.size), Math.min(c.n, (only + 1) * c.size)];
    let count = 0;
    for (let i = start; i < end; i++) {
      const fired = c.frequency[i] > 0;
      if (!fired && !dead) continue;
      const called = i % c.size === asked.feature;
      if (asked.feature !== null ? !(called || fits?.(i)) : fits && !fits(i)) continue;
      // a feature that is called by its number is meant, whatever the preset keeps
      if (fired && !called && !chosen.keep(c, i)) continue;
      if (box && !(box.x[i] >= box.x0 && box.x[i] <= box.x1 && box.y[i] >= box.y0 && box.y[i] <= box.y1)) continue;
      inside[i] = 1;
      count++;
    }
    return { inside, count };
  };

  // numbers to sort by: a column, or the place of a name in the alphabet
  function sortValues(c, key) {
    if (key === "id") return Float64Array.from({ length: c.n }, (_, i) => i);
    if (key !== "name" && key !== "word") return c[key];
    const of = (i) => (key === "word" ? c.word(c.nearest_word[i]) : CLT.featureName(c, i).text);
    const texts = Array.from({ length: c.n }, (_, i) => (key === "name" && c.name_kind[i] !== 1 ? "" : of(i)));
    const place = new Map([...new Set(texts)].sort((a, b) => a.localeCompare(b)).map((text, n) => [text, n]));
    return Float64Array.from(texts, (text) => (text ? place.get(text) : Number.NaN));
  }
  // all features in order, kept for every column and direction: a filter only picks from it
  function order(c, key, down) {
    c.orders ||= new Map();
    const name = `${key} ${down}`;
    if (!c.orders.has(name)) {
      const values = sortValues(c, key);
      const there = [];
      const missing = [];
      for (let i = 0; i < c.n; i++) (Number.isNaN(values[i]) ? missing : there).push(i);
      const sign = down ? -1 : 1;
      // what was not measured comes last, whichever way one sorts
      const sorted = Int32Array.from(there).sort((a, b) => sign * (values[a] - values[b]) || a - b);
      const all = new Int32Array(c.n);
      all.set(sorted);
      all.set(missing, sorted.length);
      c.orders.set(name, all);
    }
    return c.orders.get(name);
  }
  CLT.sortFeatures = (c, { inside, count }, key, down) => {
    const out = new Int32Array(count);
    let n = 0;
    for (const i of order(c, key, down)) if (inside[i]) out[n++] = i;
    return out;
  };
})();
