// Where nodes stand: layers bottom up, positions along x; what shares a layer and a position stands in a small block.
(() => {
  "use strict";
  const SIDE = 38;
  const GAP = 5;
  const STEP = SIDE + GAP;
  const BAND = 34; // between layers, for edges
  const LEFT = 64;
  const COLUMN = 12; // between positions
  const HIGH = 4; // nodes on top of each other before a block grows wide

  // nodes: those that are shown; `levels`: from -1 (inputs) to the targets' (layers)
  CLT.circuitLayout = (g, nodes) => {
    const cells = new Map();
    const column = (node) => (node.kind === "target" ? "targets" : g.column(node));
    for (const node of nodes) {
      const key = `${g.layered(node)} ${column(node)}`;
      if (!cells.has(key)) cells.set(key, { level: g.layered(node), column: column(node), nodes: [] });
      cells.get(key).nodes.push(node);
    }
    const levels = [...new Set([...cells.values()].map((cell) => cell.level))].sort((a, b) => a - b);
    const columns = [...new Set(nodes.map(column))].filter((c) => c !== "targets").sort((a, b) => a - b);
    const wide = new Map(columns.map((c) => [c, 1]));
    const high = new Map(levels.map((l) => [l, 1]));
    for (const cell of cells.values()) {
      if (cell.column === "targets") continue;
      wide.set(cell.column, Math.max(wide.get(cell.column), Math.ceil(cell.nodes.length / HIGH)));
    }
    for (const cell of cells.values())
      if (cell.column !== "targets")
        high.set(cell.level, Math.max(high.get(cell.level), Math.ceil(cell.nodes.length / wide.get(cell.column))));
    const x = new Map();
    let right = LEFT;
    for (const c of columns) {
      x.set(c, right);
      right += wide.get(c) * STEP + COLUMN;
    }
    const bottom = new Map();
    let height = 8;
    for (const level of levels) {
      height += high.get(level) * STEP;
      bottom.set(level, height);
      height += BAND;
    }
    height -= BAND - 8;
    const at = new Map();
    const order = ["feature", "attention", "rest", "skip", "error", "attention_error", "input", "bias"];
    for (const cell of cells.values()) {
      cell.nodes.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind) || b.influence - a.influence);
      if (cell.column === "targets") continue;
      const across = wide.get(cell.column);
      cell.nodes.forEach((node, n) => {
        at.set(node, {
          x: x.get(cell.column) + (n % across) * STEP,
          y: height - bottom.get(cell.level) + Math.floor(n / across) * STEP,
          width: SIDE,
          height: SIDE,
        });
      });
    }
    const targets = nodes.filter((node) => node.kind === "target");
    // beside the read-out's bias, which shares their level
    const first = cells.has(`${g.layers} -1`) ? x.get(-1) + wide.get(-1) * STEP + COLUMN : LEFT;
    const room = Math.max(right - first, 240);
    targets.forEach((node, n) => {
      const width = room / targets.length - GAP;
      at.set(node, { x: first + (room / targets.length) * n, y: height - bottom.get(g.layers), width, height: SIDE });
    });
    return {
      at,
      side: SIDE,
      width: Math.max(right, first + room),
      height,
      bands: levels.map((level) => ({
        level,
        top: height - bottom.get(level),
        height: high.get(level) * STEP - GAP,
        text: level < 0 ? "inputs" : level === g.layers ? "answer" : `layer ${level}`,
      })),
      columns: columns.map((c) => ({
        position: c,
        x: x.get(c),
        width: wide.get(c) * STEP - GAP,
        text: c < 0 ? (g.summed ? "all" : "–") : g.positions[c],
      })),
    };
  };
})();
