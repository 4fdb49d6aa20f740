// Colour scales. Mixed from the theme's own colours, so that they follow light and dark.
(() => {
  "use strict";
  CLT.series = (i) => `var(--s${i % 6})`;

  // a colour of the theme as [r, g, b], 0..255
  const parsed = new Map();
  CLT.rgb = (name) => {
    const text = CLT.cssColor(name);
    if (!parsed.has(text)) {
      const hex = text.slice(1);
      const pairs = hex.length === 3 ? [...hex].map((d) => d + d) : hex.match(/../g);
      parsed.set(
        text,
        pairs.map((pair) => Number.parseInt(pair, 16)),
      );
    }
    return parsed.get(text);
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const gamma = (v) => (v <= 0.0031308 ? v * 12.92 : 1.055 * v ** (1 / 2.4) - 0.055);
  // OKLab, in which halfway between two colours looks halfway
  function toLab(rgb) {
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
    const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
    const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
    return [
      0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
      1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
      0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
    ];
  }
  function fromLab([L, a, b]) {
    const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
    const rgb = [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
    ];
    return rgb.map((v) => Math.round(255 * gamma(CLT.clamp(v, 0, 1))));
  }
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };

  // 0..1 from the page's ground to the strong colour; -1..0 to the other one
  CLT.tint = (t) => {
    const share = Math.min(1, Math.abs(t)) ** 0.8;
    const [from, to] = [toLab(CLT.rgb("--cell")), toLab(CLT.rgb(t < 0 ? "--neg" : "--pos"))];
    return fromLab(from.map((v, k) => v + share * (to[k] - v)));
  };
  // black or white, whichever reads better on a colour: at least 4.58 to 1
  CLT.inkOn = (rgb) => (luminance(rgb) > 0.179 ? "#000" : "#fff");

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
    const x = CLT.clamp(t, 0, 1) * (stops.length - 1);
    const i = Math.min(Math.floor(x), stops.length - 2);
    return stops[i].map((v, c) => Math.round(v + (x - i) * (stops[i + 1][c] - v)));
  }
  CLT.fire = (t) => ramp(FIRE, t);
  CLT.layerRgb = (l, n) =>
    ramp(LAYER, n < 2 ? 0.4 : CLT.isDark() ? 0.2 + 0.75 * (l / (n - 1)) : 0.06 + 0.78 * (l / (n - 1)));
  CLT.fireBar = (steps = 24) =>
    `linear-gradient(to right, ${Array.from({ length: steps }, (_, i) => `rgb(${CLT.fire(i / (steps - 1)).join(",")})`).join(",")})`;
})();
