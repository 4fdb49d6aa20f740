// All features as columns, put together from one data file a layer; sorting and searching over them.
(() => {
  "use strict";
  const COLUMNS = [
    "frequency",
    "image_frequency",
    "cls_frequency",
    "mean_code",
    "max_code",
    "monosemanticity",
    "label_entropy",
    "class_share",
  ];
  const WHOLE = ["class_index", "nearest_class", "nearest_word", "image"];
  let ready = null;
  CLT.catalogue = (onprogress) =>
    (ready ||= (async () => {
      const features = await CLT.load("features");
      if (!features) return null;
      const { layers, features: perLayer } = features,
        n = layers * perLayer;
      const c = {
        ...features,
        n,
        size: perLayer,
        layer: (i) => Math.floor(i / perLayer),
        feature: (i) => i % perLayer,
      };
      for (const k of COLUMNS) c[k] = new Float32Array(n).fill(NaN);
      for (const k of WHOLE) c[k] = new Int32Array(n).fill(-1);
      for (let l = 0; l < layers; l++) {
        const part = await CLT.load(`layers/${String(l).padStart(2, "0")}`);
        for (const k of [...COLUMNS, ...WHOLE]) {
          const from = part[k],
            to = c[k],
            at = l * perLayer;
          for (let f = 0; f < perLayer; f++) if (from[f] !== null) to[at + f] = from[f];
        }
        if (onprogress) onprogress(l + 1, layers);
      }
      c.className = (i) => (i >= 0 ? c.classnames[i] : "");
      c.word = (i) => (i >= 0 ? c.words[i] : "");
      return c;
    })());

  // "3:12", "3/12", "L3 12" or "l3·f12" name one feature; anything else is looked for in names of classes and words
  CLT.searchFeatures = (c, { layer = "", text = "", dead = false }) => {
    const exact = text.trim().match(/^l?(\d+)\s*[:/·.\s]\s*f?(\d+)$/i),
      words = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const hit = (names) => names.map((name) => words.every((w) => name.toLowerCase().includes(w)));
    const byClass = words.length ? hit(c.classnames) : null,
      byWord = words.length ? hit(c.words) : null,
      out = [];
    const [start, end] = layer === "" ? [0, c.n] : [layer * c.size, (Number(layer) + 1) * c.size];
    for (let i = start; i < end; i++) {
      if (!dead && !(c.frequency[i] > 0)) continue;
      if (exact) {
        if (c.layer(i) === Number(exact[1]) && c.feature(i) === Number(exact[2])) out.push(i);
        continue;
      }
      if (
        words.length &&
        !(
          byClass[c.class_index[i]] ||
          byClass[c.nearest_class[i]] ||
          byWord[c.nearest_word[i]] ||
          (/^\d+$/.test(words[0]) && words.length === 1 && c.feature(i) === Number(words[0]))
        )
      )
        continue;
      out.push(i);
    }
    return Int32Array.from(out);
  };
  CLT.sortFeatures = (list, value, down) => {
    const keys = new Map();
    for (const i of list) keys.set(i, value(i));
    const sign = down ? -1 : 1;
    // what was not measured comes last, whichever way one sorts
    return list.sort((a, b) => {
      const x = keys.get(a),
        y = keys.get(b),
        mx = Number.isNaN(x) || x === "",
        my = Number.isNaN(y) || y === "";
      if (mx || my) return mx - my || a - b;
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y) || a - b;
    });
  };
})();
