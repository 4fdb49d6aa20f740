// All features as columns, put together from one data file a layer.
(() => {
  "use strict";
  const two = (n) => String(n).padStart(2, "0");
  let ready = null;
  CLT.catalogue = () => {
    ready ||= read();
    return ready;
  };

  async function read() {
    const meta = await CLT.load("features");
    if (!meta) return null;
    const { layers, features: size, images: seen, ...own } = meta; // `images` is a column: of each feature
    const c = {
      ...own,
      layers,
      seen,
      n: layers * size,
      size,
      layer: (i) => Math.floor(i / size),
      feature: (i) => i % size,
    };
    const parts = await Promise.all(Array.from({ length: layers }, (_, l) => CLT.load(`layers/${two(l)}`)));
    parts.forEach((part, l) => {
      for (const [name, text] of Object.entries(part)) {
        const values = CLT.column(text);
        c[name] ||= new values.constructor(c.n);
        c[name].set(values, l * size);
      }
      CLT.forget(`layers/${two(l)}`);
    });
    c.className = (k) => (k >= 0 ? c.classnames[k] : "");
    c.word = (k) => (k >= 0 ? c.words[k] : "");
    c.id = (i) => `L${c.layer(i)} · ${c.feature(i)}`;
    c.href = (i) => CLT.href("feature", [c.layer(i), c.feature(i)]);
    return c;
  }

  // the strongest images of a feature and where each is strongest: [[image, position], ...], read a layer at a time
  CLT.crops = async (c, i) => {
    const part = await CLT.load(`crops/${two(c.layer(i))}`);
    part.images ||= CLT.column(part.image);
    part.positions ||= CLT.column(part.position);
    const first = c.feature(i) * c.crops;
    return Array.from({ length: c.crops }, (_, k) => [part.images[first + k], part.positions[first + k]]).filter(
      ([image]) => image >= 0,
    );
  };

  // a crop of `CLT.crops` as a picture that leads nowhere
  CLT.cropThumb = (c, sprites, [image, position]) =>
    CLT.thumb(sprites, image, {
      mode: "image",
      grid: c.grid,
      crop: position > 0 ? position - 1 : undefined,
      alt: "",
      link: false,
    });
})();
