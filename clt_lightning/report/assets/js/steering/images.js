// The images that an edit has given another class: each with what it was seen as, and what it is seen as now.
(() => {
  "use strict";
  const { h } = CLT;
  const SHOWN = 4; // classes of an image
  const LEAST = 0.01; // probability of those beside the two that it was seen as
  const WAYS = [
    ["gained", "Now right", "Taken for another class before, and for their own with the edit."],
    ["lost", "Now wrong", "Taken for their own class before, and for another with the edit."],
    ["other", "From one class to another", "Neither is the image's own, or it has no label."],
  ];

  function rows(data, image) {
    const named = new Set([image.was, image.now]);
    const rest = image.classes
      .filter(([k, before, after]) => !named.has(k) && Math.max(before, after) >= LEAST)
      .slice(0, SHOWN - named.size);
    return image.classes
      .filter((row) => named.has(row[0]) || rest.includes(row))
      .map(([k, before, after]) =>
        h(
          "div",
          { class: "twobar" },
          h("span", { class: "cut", title: data.classnames[k] }, data.classnames[k]),
          h(
            "span",
            { class: "bars", "aria-hidden": "true" },
            h("i", { class: "was", style: { width: `${100 * before}%` } }),
            h("i", { class: "is", style: { width: `${100 * after}%` } }),
          ),
          h("span", { class: "n" }, CLT.percent(before, 0)),
          h("b", { class: "n" }, CLT.percent(after, 0)),
        ),
      );
  }
  function card(data, image) {
    const name = (k) => data.classnames[k];
    const href = image.image === null ? null : CLT.imageHref(image.image);
    const said = `${name(image.was)}, now ${name(image.now)}`;
    const picture = image.picture ? h("img", { src: image.picture, alt: href ? `${image.key}: its page` : "" }) : null;
    return h(
      "li",
      { class: "moved" },
      picture && h(href ? "a" : "span", { class: "thumb", href }, picture),
      h(
        "div",
        {},
        h("p", { class: "key cut", title: image.key }, image.key),
        h("p", { class: "sr" }, said),
        rows(data, image),
        image.label >= 0 && image.label !== image.was && image.label !== image.now
          ? h("p", { class: "note" }, `labelled ${name(image.label)}`)
          : null,
      ),
    );
  }

  // a card for each way in which images came to another class; those without any are left out
  CLT.steering.images = (data) =>
    WAYS.filter(([way]) => data.flips[way]).map(([way, title, note]) => {
      const kept = data.pictures[way];
      const more = data.flips[way] > kept.length ? ` The ${kept.length} that change most are shown.` : "";
      return CLT.card(
        `${title}: ${CLT.count(data.flips[way])}`,
        { note: note + more, cls: `went ${way}` },
        h(
          "ul",
          { class: "moves" },
          kept.map((image) => card(data, image)),
        ),
      );
    });
})();
