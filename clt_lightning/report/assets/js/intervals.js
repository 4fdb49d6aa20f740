// Intervals as text: rounded outward, so that the value that is printed with them lies inside.
(() => {
  "use strict";
  const { h } = CLT;
  const outward = (v, power, up) => {
    const steps = v / power;
    // what is a whole number of steps but for rounding stays
    const near = Math.round(steps);
    const whole = Math.abs(steps - near) < 1e-6 ? near : up ? Math.ceil(steps) : Math.floor(steps);
    return whole * power;
  };
  // both ends with `digits` decimals
  CLT.range = (low, high, digits) =>
    `${CLT.fixed(outward(low, 10 ** -digits, false), digits)}–${CLT.fixed(outward(high, 10 ** -digits, true), digits)}`;
  // both ends with `digits` significant ones
  CLT.rangeOf = (low, high, digits = 2) => {
    const end = (v, up) => {
      if (!v) return "0";
      const power = 10 ** (Math.floor(Math.log10(Math.abs(v))) - digits + 1);
      return CLT.num(outward(v, power, up), digits + 1);
    };
    return `${end(low, false)}–${end(high, true)}`;
  };
  // a share or a number of a table: {v, t}; kind: percent, points, number
  CLT.intervalCell = (i, kind = "percent") => {
    if (!i || i.value === null || i.value === undefined) return { v: null, t: "–" };
    const text =
      kind === "number"
        ? CLT.num(i.value)
        : kind === "points"
          ? `${CLT.fixed(100 * i.value, 1)} pp`
          : CLT.percent(i.value);
    const ends =
      i.low === null || i.low === undefined
        ? null
        : kind === "number"
          ? CLT.rangeOf(i.low, i.high, 3)
          : CLT.range(100 * i.low, 100 * i.high, 1);
    return { v: i.value, t: h("span", {}, text, ends && [" ", h("span", { class: "ci" }, ends)]) };
  };
})();
