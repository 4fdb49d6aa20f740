// Colour scales. Mixed in the browser from the theme's own colours, so that they follow light and dark.
(() => {
  "use strict";
  CLT.series = (i) => `var(--s${i % 6})`;
  // 0..1 from the page's ground to the strong colour; -1..0 to the other one
  CLT.tint = (t) => {
    const p = Math.round(1000 * Math.min(1, Math.abs(t)) ** 0.8) / 10;
    return `color-mix(in oklab, var(${t < 0 ? "--neg" : "--pos"}) ${Math.min(p, 100)}%, var(--cell))`;
  };
  CLT.tintIsStrong = (t) => Math.abs(t) > 0.52;
  // "inferno" in nine steps: lightness rises evenly, so it reads in grey and with any colour vision
  const FIRE = [
    [0, 0, 4],
    [31, 12, 72],
    [85, 15, 109],
    [136, 34, 106],
    [186, 54, 85],
    [227, 89, 51],
    [249, 140, 10],
    [249, 201, 50],
    [252, 255, 164],
  ];
  // "viridis", for layers
  const LAYER = [
    [68, 1, 84],
    [71, 44, 122],
    [59, 81, 139],
    [44, 113, 142],
    [33, 144, 141],
    [39, 173, 129],
    [92, 200, 99],
    [170, 220, 50],
    [253, 231, 37],
  ];
  function ramp(stops, t) {
    const x = CLT.clamp(t, 0, 1) * (stops.length - 1),
      i = Math.min(Math.floor(x), stops.length - 2),
      f = x - i;
    return stops[i].map((v, c) => Math.round(v + f * (stops[i + 1][c] - v)));
  }
  CLT.fire = (t) => ramp(FIRE, t);
  CLT.layerColor = (l, n) =>
    `rgb(${ramp(LAYER, n < 2 ? 0.4 : 0.06 + (CLT.isDark() ? 0.9 : 0.8) * (l / (n - 1))).join(",")})`;
  CLT.fireBar = (steps = 24) =>
    `linear-gradient(to right, ${Array.from({ length: steps }, (_, i) => `rgb(${CLT.fire(i / (steps - 1)).join(",")})`).join(",")})`;
})();
