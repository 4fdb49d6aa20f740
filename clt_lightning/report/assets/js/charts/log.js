// Lines over a logarithmic axis: numbers that span decades, such as KL.
(() => {
  "use strict";
  const log = (v) => (v > 0 ? Math.log10(v) : null);
  // what `CLT.charts.lines` takes; numbers that are not above 0 have no place on the axis and are left out
  CLT.charts.logLines = (options) => {
    const series = options.series.map((s) => {
      const y = s.y.map(log);
      const ends = s.low && s.high ? { low: s.low.map(log), high: s.high.map(log) } : {};
      // an interval down to 0 ends at the lowest number of its curve
      if (ends.low)
        ends.low = ends.low.map((v, i) => (v === null && y[i] !== null ? Math.min(...y.filter(Number.isFinite)) : v));
      return { ...s, y, ...ends };
    });
    const levels = (options.levels || []).map((l) => ({ ...l, y: log(l.y) })).filter((l) => l.y !== null);
    const all = [...series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]), ...levels.map((l) => l.y)];
    const finite = all.filter(Number.isFinite);
    if (!finite.length) return CLT.empty("Nothing above 0: it has no place on a logarithmic axis.");
    const [low, high] = [Math.min(...finite), Math.max(...finite)];
    const room = Math.max(0.05, 0.05 * (high - low));
    const steps = high - low > 3 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 3, 5, 7];
    const ticks = [];
    for (let p = Math.floor(low); p <= Math.ceil(high); p++)
      for (const step of steps) {
        const at = p + Math.log10(step);
        if (at >= low - room && at <= high + room) ticks.push(at);
      }
    const yText = options.yText || ((v) => CLT.num(v));
    return CLT.charts.lines({
      ...options,
      series,
      levels,
      yDomain: [low - room, high + room],
      yTicks: ticks,
      yText: (v) => yText(10 ** v),
    });
  };
})();
