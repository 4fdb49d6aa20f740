// The image on which a feature is strongest, as a thumbnail that fills in when its layer was read; a grey box without.
(() => {
  "use strict";
  CLT.strongest = (c, sprites, layer, feature) => {
    const box = CLT.h("span", { class: "thumb", "aria-hidden": "true" });
    const known = c && layer < c.layers && feature < c.size;
    if (known)
      CLT.crops(c, layer * c.size + feature).then(
        ([first]) => {
          if (first) box.replaceWith(CLT.thumb(sprites, first[0], { mode: "image", alt: "", link: false }));
        },
        () => {},
      );
    return box;
  };
})();
