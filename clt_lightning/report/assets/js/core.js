// The page's foundation: one global, data files that are read when they are needed, and small helpers.
// Browsers refuse fetch() and ES modules on file://, so data come as scripts that call CLT.put(name, value).
(() => {
  "use strict";
  const CLT = { pages: {}, charts: {} };
  window.CLT = CLT;
  const store = new Map();
  const waiting = new Map();
  const CHUNKS_KEPT = 40;

  CLT.put = (name, value) => store.set(name, value);
  CLT.forget = (name) => store.delete(name);
  // what is here already
  CLT.get = (name) => store.get(name);
  // an entry of the one list of pages: {name, title, about, under, needs}
  CLT.page = (name) => store.get("pages").find((page) => page.name === name);

  CLT.load = (name) => {
    if (store.has(name)) return Promise.resolve(store.get(name));
    if (waiting.has(name)) return waiting.get(name);
    const promise = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const done = (error) => {
        script.remove();
        waiting.delete(name);
        if (error) reject(error);
        else resolve(store.get(name));
      };
      script.src = `data/${name}.js`;
      script.onload = () => done(store.has(name) ? null : new Error(`data/${name}.js holds no data`));
      script.onerror = () => done(new Error(`data/${name}.js cannot be read. Is the report's folder complete?`));
      document.head.append(script);
    });
    waiting.set(name, promise);
    promise.then(
      () => forgetOldChunks(name),
      () => {},
    );
    return promise;
  };

  // Cards and images come one by one; a long visit must not gather all of them in memory.
  const chunks = [];
  function forgetOldChunks(name) {
    if (!/^(cards|images)\//.test(name)) return;
    chunks.push(name);
    while (chunks.length > CHUNKS_KEPT) store.delete(chunks.shift());
  }

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "style" && typeof value === "object")
        for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
      else node.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity))
      if (child !== null && child !== undefined && child !== false) node.append(child);
    return node;
  }
  CLT.h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  CLT.svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  CLT.say = (text) => {
    document.getElementById("live").textContent = text;
  };

  // numbers; null is "not measured"
  CLT.num = (v, digits = 3) => {
    if (v === null || v === undefined || Number.isNaN(v)) return "–";
    if (typeof v === "string") return v;
    if (v === 0) return "0";
    const a = Math.abs(v);
    return (
      a >= 1e5 || a < 1e-4 ? v.toExponential(Math.max(0, digits - 1)) : Number(v.toPrecision(digits)).toString()
    ).replace("-", "−");
  };
  CLT.fixed = (v, digits) =>
    v === null || v === undefined || Number.isNaN(v) ? "–" : v.toFixed(digits).replace("-", "−");
  CLT.percent = (v, digits = 1) =>
    v === null || v === undefined ? "–" : `${(100 * v).toFixed(digits)} %`.replace("-", "−");
  CLT.count = (v) => (v === null || v === undefined ? "–" : Math.round(v).toLocaleString("en").replace(/,/g, " "));
  CLT.tokenName = (set) => ({ cls: "[CLS]", patch: "patches", all: "all tokens" })[set] || set;
  // few digits, for addresses and input fields
  CLT.short = (v) => String(Number(v.toPrecision(4)));
  CLT.quantile = (values, share) => {
    const sorted = Float64Array.from(values).sort();
    return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  };
  CLT.clamp = (v, low, high) => Math.min(high, Math.max(low, v));

  CLT.bytes = (text) => {
    const letters = atob(text);
    const out = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) out[i] = letters.charCodeAt(i);
    return out;
  };
  // a column of numbers: a letter for its type, then base64 of little-endian values
  const COLUMNS = { b: Int8Array, h: Int16Array, i: Int32Array, f: Float32Array };
  CLT.column = (text) => new COLUMNS[text[0]](CLT.bytes(text.slice(1)).buffer);
  // non-negative numbers in 8 bits: {top, values}
  CLT.shares = ({ top, values }) => Float32Array.from(CLT.bytes(values), (v) => (v / 255) * top);

  // a whole number from an address, below a limit; null for anything else
  CLT.whole = (text, limit = Infinity) => (/^\d+$/.test(text ?? "") && Number(text) < limit ? Number(text) : null);
  // an address that leads nowhere: the page says so, and nothing is wrong with the report
  CLT.Nowhere = class extends Error {};
})();
