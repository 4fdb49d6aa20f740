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

  // does a feature fit the words? Its name, its strongest class, the nearest class and word, and what a
  // reader has noted
  function byWords(c, words) {
    if (!words.length) return null;
    const hit = (names) => names.map((name) => words.every((w) => name.toLowerCase().includes(w)));
    const classes = hit(c.classnames);
    const near = hit(c.words);
    const kinds = hit(["no name", "", "dense", "position"]);
    const noted = CLT.notes.all().filter(([, , note]) => hit([`${note.label || ""} ${note.comment || ""}`])[0]);
    const mine = new Set(noted.map(([layer, feature]) => layer * c.size + feature));
    return (i) =>
      mine.has(i) ||
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
    if (key === "id") return Float32Array.from({ length: c.n }, (_, i) => i);
    if (key !== "name" && key !== "word") return c[key];
    const text =
      key === "word"
        ? (i) => c.word(c.nearest_word[i])
        : (i) => (c.name_kind[i] === 1 ? c.className(c.lift_class[i]) : "");
    const texts = Array.from({ length: c.n }, (_, i) => text(i));
    const sorted = [...new Set(texts)].sort((x, y) => x.localeCompare(y));
    const place = new Map(sorted.map((name, n) => [name, name ? n : Number.NaN]));
    return Float32Array.from(texts, (name) => place.get(name));
  }
  // indices in order of their values, equal ones as they were: by counting, 16 bits at a time, which for 70,000 numbers
  // takes a tenth of the time that comparing takes
  function inOrder(indices, values, down) {
    const n = indices.length;
    const floats = new Float32Array(n);
    for (let k = 0; k < n; k++) floats[k] = values[indices[k]] + 0; // no -0
    const keys = new Uint32Array(floats.buffer);
    let from = new Int32Array(n);
    for (let k = 0; k < n; k++) {
      const ascending = keys[k] & 0x80000000 ? ~keys[k] : keys[k] | 0x80000000;
      keys[k] = down ? ~ascending : ascending;
      from[k] = k;
    }
    for (const shift of [0, 16]) {
      const starts = new Int32Array(65537);
      for (let k = 0; k < n; k++) starts[((keys[k] >>> shift) & 0xffff) + 1]++;
      for (let b = 1; b < 65537; b++) starts[b] += starts[b - 1];
      const to = new Int32Array(n);
      for (let k = 0; k < n; k++) to[starts[(keys[from[k]] >>> shift) & 0xffff]++] = from[k];
      from = to;
    }
    for (let k = 0; k < n; k++) from[k] = indices[from[k]];
    return from;
  }
  // all features in order, kept for every column and direction: a filter only picks from it
  function order(c, key, down) {
    c.orders ||= new Map();
    const name = `${key} ${down}`;
    if (!c.orders.has(name)) {
      const values = sortValues(c, key);
      const all = new Int32Array(c.n);
      let measured = 0;
      for (let i = 0; i < c.n; i++) if (!Number.isNaN(values[i])) all[measured++] = i;
      // what was not measured comes last, whichever way one sorts
      for (let i = 0, at = measured; i < c.n; i++) if (Number.isNaN(values[i])) all[at++] = i;
      all.set(inOrder(all.subarray(0, measured), values, down));
      c.orders.set(name, all);
    }
    return c.orders.get(name);
  }
  // every feature that fits a text, the most frequent first
  CLT.searchFeatures = (c, { text }) => {
    const found = CLT.filterFeatures(c, { preset: "all", layer: "", text, dead: false, box: null });
    return CLT.sortFeatures(c, found, "frequency", true);
  };
  CLT.sortFeatures = (c, { inside, count }, key, down) => {
    const out = new Int32Array(count);
    let n = 0;
    for (const i of order(c, key, down)) if (inside[i]) out[n++] = i;
    return out;
  };
})();
