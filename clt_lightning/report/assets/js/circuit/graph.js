// A circuit's data as nodes and edges; which of them are shown; what taking some away is predicted to do.
(() => {
  "use strict";
  const KINDS = ["feature", "rest", "error", "skip", "input", "bias", "target", "attention", "attention_error"];
  const CHANGED = ["feature", "error"];
  // kinds that are cut by influence
  const COUNTED = ["feature", "attention", "error", "attention_error", "skip", "input"];

  // the names that the file of a graph gives its nodes (analysis/circuits/interchange.py)
  function idOf(node, layers, biases) {
    const place = node.position < 0 ? "all" : String(node.position);
    const { kind, layer, feature } = node;
    if (kind === "feature") return `${layer}_${feature}_${place}`;
    if (kind === "attention") return `attention_${layer}_${feature}_${place}`;
    if (kind === "input") return `E_${Math.max(node.position, 0)}_${place}`;
    if (kind === "target") return `${layers + 1}_${feature}_0`;
    if (kind === "bias") return `bias_${biases[feature].replaceAll(" ", "_")}_${layer < 0 ? "out" : layer}`;
    return `${kind}_${layer}_${place}`;
  }

  function nodesOf(d) {
    const columns = Object.fromEntries(Object.entries(d.nodes).map(([name, text]) => [name, CLT.column(text)]));
    const inputs = CLT.column(d.inputs);
    return Array.from(columns.kind, (kind, index) => {
      const node = { index, kind: KINDS[kind], inputs: inputs[index], into: [], from: [] };
      for (const name of ["layer", "position", "feature", "activation", "influence", "cumulated"])
        node[name] = columns[name][index];
      node.place = node.position < 0 ? "" : d.positions[node.position];
      node.id = idOf(node, d.layers, d.biases);
      return node;
    });
  }

  CLT.circuit = (d) => {
    if (d.ready) return d.ready;
    const nodes = nodesOf(d);
    const byId = new Map(nodes.map((node) => [node.id, node]));
    const [source, target, weight] = ["source", "target", "weight"].map((name) => CLT.column(d.edges[name]));
    const edges = Array.from(weight, (w, n) => ({ n, source: nodes[source[n]], target: nodes[target[n]], weight: w }));
    for (const edge of edges) {
      edge.source.from.push(edge);
      edge.target.into.push(edge);
    }
    const g = { ...d, nodes, edges, byId, counted: (node) => COUNTED.includes(node.kind) };
    g.layered = (node) =>
      node.kind === "target" || (node.kind === "bias" && node.layer < 0)
        ? d.layers
        : node.kind === "input"
          ? -1
          : node.layer;
    g.changed = (node) => CHANGED.includes(node.kind);

    // -- codes over the picture
    const rows = new Map();
    const [layers, features, peaks] = ["layer", "feature", "peaks"].map((name) => CLT.column(d.maps[name]));
    features.forEach((feature, n) => {
      rows.set(`${layers[n]}/${feature}`, n);
    });
    const map = CLT.unpackMaps(d.maps.maps, d.positions.length);
    // of a feature all its codes, of what else has a place that place alone; null for what has none
    g.map = (node) => {
      const n = node.kind === "feature" ? rows.get(`${node.layer}/${node.feature}`) : undefined;
      if (n !== undefined && (node.position >= 0 || peaks[n] > 0)) return map(n, peaks[n]);
      if (node.position < 0) return null;
      const one = new Float32Array(d.positions.length);
      one[node.position] = 1;
      return one;
    };

    // where it stands: of a feature that is summed over positions, where its code is largest
    const places = new Map();
    g.column = (node) => {
      if (node.position >= 0 || node.kind !== "feature") return node.position;
      if (!places.has(node)) {
        const codes = g.map(node);
        places.set(
          node,
          codes ? codes.reduce((best, v, p) => (Math.abs(v) > Math.abs(codes[best]) ? p : best), 0) : -1,
        );
      }
      return places.get(node);
    };

    g.isAt = (node, position) =>
      node.position < 0 && node.kind === "feature" ? Boolean(g.map(node)?.[position]) : node.position === position;

    // -- what is shown at a share of the influence, with the strongest edges: what leads to no target goes as well
    g.visible = (share, most) => {
      const wanted = new Set(nodes.filter((node) => !COUNTED.includes(node.kind) || node.cumulated <= share));
      let drawn = edges.filter((edge) => wanted.has(edge.source) && wanted.has(edge.target)).slice(0, most);
      const leads = new Set(nodes.filter((node) => node.kind === "target"));
      // edges go up: from the targets down, a few rounds reach everything
      for (let before = -1; before !== leads.size; ) {
        before = leads.size;
        for (const edge of drawn) if (leads.has(edge.target)) leads.add(edge.source);
      }
      drawn = drawn.filter((edge) => leads.has(edge.target));
      return { nodes: nodes.filter((node) => leads.has(node)), edges: drawn };
    };

    // -- heads
    const h = d.heads;
    const split = new Map();
    if (h) {
      const [edge, head, value, direct] = ["edge", "head", "value", "direct"].map((name) => CLT.column(h[name]));
      edge.forEach((n, row) => {
        const parts = Array.from({ length: h.kept }, (_, k) => ({
          layer: Math.floor(head[row * h.kept + k] / h.count),
          head: head[row * h.kept + k] % h.count,
          value: value[row * h.kept + k],
        })).filter((part) => part.value !== 0);
        const known = parts.reduce((sum, part) => sum + part.value, direct[row]);
        split.set(n, { parts, direct: direct[row], others: edges[n].weight - known });
      });
    }
    g.split = (edge) => split.get(edge.n) ?? null;
    g.isSplit = (node) => Boolean(h?.readers.includes(node.index));

    // -- predictions
    g.predict = d.responses ? predictor(g, d) : null;
    d.ready = g;
    return g;
  };

  // `responses`: what each feature or error, taken away alone, does to the targets and, relatively, to codes above it.
  // A set is impulses u that bring every node of it to its new code: u_i + sum over lower j of (i's answer to j) u_j = r_i.
  function predictor(g, d) {
    const chosen = Array.from(CLT.column(d.responses.nodes), (n) => g.nodes[n]);
    const at = new Map(chosen.map((node, n) => [node, n]));
    const targets = CLT.column(d.responses.targets);
    const codes = CLT.unpackNumbers(d.responses.codes);
    const T = d.targets.length;
    const n = chosen.length;
    const answer = new Float64Array(n * n);
    let k = 0;
    chosen.forEach((from, i) => {
      chosen.forEach((to, j) => {
        if (from.layer < to.layer && to.kind === "feature") answer[i * n + j] = -codes[k++];
      });
    });
    const known = (list) => list.every((node) => at.has(node));
    // list: [[node, factor]]; the change of every target, and of every node's code as a share of it
    const predict = (list) => {
      const set = list
        .map(([node, factor]) => [at.get(node), factor - 1, node])
        .sort((a, b) => a[2].layer - b[2].layer);
      const impulses = [];
      for (const [i, change] of set)
        impulses.push([i, change - impulses.reduce((sum, [j, u]) => sum + answer[j * n + i] * u, 0)]);
      const out = Array.from({ length: T }, (_, t) =>
        impulses.reduce((sum, [i, u]) => sum - u * targets[i * T + t], 0),
      );
      const moved = new Map();
      chosen.forEach((node, j) => {
        moved.set(
          node,
          impulses.reduce((sum, [i, u]) => sum + answer[i * n + j] * u, 0),
        );
      });
      for (const [i, change] of set) moved.set(chosen[i], change);
      return { targets: out, codes: moved };
    };
    return { known, predict };
  }
})();
