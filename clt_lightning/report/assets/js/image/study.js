// What the data of an image's page say: logits, their terms, what each feature adds, what happens without it.
(() => {
  "use strict";
  const KINDS = ["attention", "features", "skip", "bias", "error"];
  // 16-bit shares of the largest; -32768 is "not computed"
  CLT.unpackNumbers = ({ peak, values }) =>
    Float64Array.from(new Int16Array(CLT.bytes(values).buffer), (v) => (v === -32768 ? NaN : (v / 32767) * peak));

  // A question: two classes, `more` minus `less`. less: null: the logit of `more` alone; MEAN: minus the mean of all classes
  CLT.MEAN = -1;

  CLT.study = (d) => {
    if (d.study) return d.study;
    const named = d.classes !== null;
    const columns = named ? d.columns || d.logits.map((_, i) => i) : [];
    const at = new Map(columns.map((c, i) => [c, i]));
    const asked = new Map((d.classes || []).map((c, i) => [c, i]));
    const K = asked.size + 1;
    const s = { layers: d.layers, grid: d.grid, positions: d.positions, full: d.full, label: d.label, columns };
    s.classes = d.classes || [];
    s.predicted = named ? d.tops[0] : null;
    s.replacedTop = named ? d.tops[1] : null;
    s.questions = d.questions || [];
    s.known = (c) => at.has(c);
    s.logit = (c, replaced) => (replaced ? d.replaced : d.logits)[at.get(c)];
    s.probability = (c, replaced) => Math.exp(s.logit(c, replaced) - d.log_sums[replaced ? 1 : 0]);

    // -- the logits as sums
    const rows = [["embedding", null]];
    for (const kind of KINDS) for (let l = 0; l < d.layers; l++) rows.push([kind, l]);
    rows.push(["norm bias", null]);
    const width = columns.length + 1;
    const tables = {};
    for (const which of ["terms", "replaced_terms"]) if (d[which]) tables[which] = CLT.column(d[which]);
    s.hasTerms = (replaced) => Boolean(tables[replaced ? "replaced_terms" : "terms"]);
    const read = (c) => (c === CLT.MEAN ? width - 1 : at.get(c));
    s.terms = (more, less, replaced) => {
      const table = tables[replaced ? "replaced_terms" : "terms"];
      return rows.map(([kind, layer], r) => ({
        kind,
        layer,
        value: table[r * width + read(more)] - (less === null ? 0 : table[r * width + read(less)]),
      }));
    };
    // the model's own number, not the sum of the terms
    s.answer = (more, less, replaced) => {
      if (less === null) return s.logit(more, replaced);
      return s.logit(more, replaced) - (less === CLT.MEAN ? d.means[replaced ? 1 : 0] : s.logit(less, replaced));
    };

    // -- the features whose effects are among the largest of some question about the classes asked
    if (named) {
      const f = d.features;
      s.layer = CLT.column(f.layer);
      s.feature = CLT.column(f.feature);
      const total = CLT.unpackNumbers(f.total);
      const direct = f.direct && CLT.unpackNumbers(f.direct);
      const integrated = f.integrated.map(CLT.unpackNumbers);
      const place = (c) => (c === CLT.MEAN ? K - 1 : asked.get(c));
      s.asked = (more, less) => asked.has(more) && (less === null || less === CLT.MEAN || asked.has(less));
      const difference = (table, more, less) =>
        Float64Array.from(
          s.layer,
          (_, i) => table[i * K + place(more)] - (less === null ? 0 : table[i * K + place(less)]),
        );
      s.total = (more, less) => difference(total, more, less);
      s.direct = (more, less) => (direct ? difference(direct, more, less) : null);
      // 1, -1: asked this way or the other way round; 0: not
      const same = ([a, b], more, less) => (a === more && b === less) - (a === less && b === more);
      s.question = (more, less) => {
        const n = s.questions.findIndex((q) => same(q, more, less));
        return n < 0 ? null : { n, sign: same(s.questions[n], more, less) };
      };
      s.integrated = (more, less) => {
        const q = s.question(more, less);
        return q && s.full ? integrated[q.n].map((v) => q.sign * v) : null;
      };
      // what the answer loses without some features, in the live model; null where it is not known
      const after = (a, c) => a.after[asked.get(c)];
      s.real = (a, more, less) => {
        if (!a || less === CLT.MEAN || !s.asked(more, less)) return null;
        const then = after(a, more) - (less === null ? 0 : after(a, less));
        return s.answer(more, less, false) - then;
      };
      s.ablated = new Map();
      for (const a of d.ablations) if (a.rows.length === 1) s.ablated.set(a.rows[0], a);
      s.together = (more, less) => {
        const q = s.question(more, less);
        const found = q && d.ablations.filter((a) => a.question === q.n).pop();
        return found ? { ...found, predicted: q.sign * found.predicted } : null;
      };
      s.probabilityAfter = (a, c) => (asked.has(c) ? Math.exp(after(a, c) - a.log_sum) : null);
    }

    // -- codes
    s.codes = d.codes.map((part) => {
      const features = CLT.column(part.features);
      const peaks = CLT.column(part.peaks);
      const map = CLT.unpackMaps(part.maps, d.positions);
      const effects = part.effects.map(CLT.unpackNumbers);
      const u16 = (text) => new Uint16Array(CLT.bytes(text).buffer);
      const counts = u16(part.maps.counts);
      const positions = u16(part.maps.positions);
      const index = new Map();
      let start = 0;
      const starts = [];
      features.forEach((feature, n) => {
        index.set(feature, n);
        starts.push(start);
        start += counts[n];
      });
      return {
        features,
        peaks,
        active: part.active,
        index,
        map: (n) => map(n, peaks[n]),
        // the codes at a position: [{feature, code, effect: of each question}]
        at: (position) => {
          const out = [];
          features.forEach((feature, n) => {
            for (let j = starts[n]; j < starts[n] + counts[n]; j++)
              if (positions[j] === position)
                out.push({ feature, n, code: map(n, peaks[n])[position], effects: effects.map((e) => e[j]) });
          });
          return out;
        },
      };
    });
    s.map = (layer, feature) => {
      const part = s.codes[layer];
      return part.index.has(feature) ? part.map(part.index.get(feature)) : null;
    };
    d.study = s;
    return s;
  };
})();
