// The image on which a feature is strongest, beside its name; a grey box where there is none.
(() => {
  "use strict";
  CLT.strongest = (c, sprites, layer, feature) => {
    const image = c && layer < c.layers && feature < c.size ? c.image[layer * c.size + feature] : -1;
    return image >= 0
      ? CLT.thumb(sprites, image, { mode: "image", alt: "", link: false })
      : CLT.h("span", { class: "thumb" });
  };
})();
