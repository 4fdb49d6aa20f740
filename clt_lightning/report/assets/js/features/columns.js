// The columns of the explorer's table.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.featureColumns = (c, sprites, numbers) => {
    const dash = () => h("span", { class: "dim" }, "–");
    const picture = (i) =>
      c.image[i] >= 0 ? CLT.thumb(sprites, c.image[i], { mode: "image", alt: "", link: false }) : "";
    const first = [
      "frequency",
      "monosemanticity",
      "effect",
      "strength",
      "cls_share",
      "mean_code",
      "max_code",
      "reach",
      "written",
      "margin",
      "lift",
      "image_frequency",
      "label_entropy",
    ];
    const order = [...numbers].sort((a, b) => first.indexOf(a.key) - first.indexOf(b.key));
    return [
      { key: "image", name: "", hidden: "strongest image", width: "44px", cell: picture },
      { key: "id", name: "Feature", width: "86px", sortable: true, cls: "id", cell: c.id },
      {
        key: "name",
        name: "Name",
        width: "minmax(120px, 1.4fr)",
        sortable: true,
        cell: (i) => CLT.namePill(c, i),
        help: "The class that is surely twice as frequent among its images, with its lift",
      },
      ...order.map((number) => ({
        key: number.key,
        name: number.short,
        width: "minmax(74px, .8fr)",
        sortable: true,
        number: true,
        hideSmall: !["frequency", "monosemanticity"].includes(number.key),
        help: number.about,
        cell: (i) => (Number.isNaN(c[number.key][i]) ? dash() : number.show(c[number.key][i])),
      })),
      ...(c.words.length
        ? [
            {
              key: "word",
              name: "Nearest word",
              width: "minmax(110px, 1fr)",
              sortable: true,
              hideSmall: true,
              cell: (i) => c.word(c.nearest_word[i]) || dash(),
              help: "The word whose CLIP text embedding is nearest to its images",
            },
          ]
        : []),
    ];
  };
})();
