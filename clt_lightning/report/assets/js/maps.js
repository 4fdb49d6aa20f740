// Unpacks the codes of a chunk of cards: for each map the active positions and their values.
(() => {
  "use strict";
  // packed: {counts, positions, values: base64 of uint16}; 65535 stands for the feature's peak; `negative` marks signs
  CLT.unpackMaps = (packed, positions) => {
    if (packed.ready) return packed.ready;
    const u16 = (text) => new Uint16Array(CLT.bytes(text).buffer);
    const counts = u16(packed.counts),
      places = u16(packed.positions),
      values = u16(packed.values),
      negative = packed.negative ? CLT.bytes(packed.negative) : null;
    const starts = new Uint32Array(counts.length + 1);
    for (let i = 0; i < counts.length; i++) starts[i + 1] = starts[i] + counts[i];
    packed.ready = (n, peak) => {
      const map = new Float32Array(positions);
      for (let j = starts[n]; j < starts[n + 1]; j++)
        map[places[j]] = (values[j] / 65535) * peak * (negative?.[j] ? -1 : 1);
      return map;
    };
    return packed.ready;
  };
})();
