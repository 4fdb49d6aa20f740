// What a feature is called, and whether what it does goes with that.
(() => {
  "use strict";
  const { h } = CLT;
  const KINDS = ["none", "class", "dense", "position"];
  const WORDS = { none: "no name", dense: "dense", position: "position" };
  const WHY = {
    person: "A name that a person gave.",
    none: "No class is surely twice as frequent among its images as among all.",
    dense: "Active on more than a tenth of all tokens, and no class stands out.",
    position: "It fires at few positions of the image, and no class stands out.",
  };

  // {kind (`person`: a reader's own name), text, lift: how many times as often its class is among its images as among all; null without}
  CLT.featureName = (c, i) => {
    const { label } = CLT.notes.of(c.layer(i), c.feature(i));
    if (label) return { kind: "person", text: label, lift: null };
    const kind = KINDS[c.name_kind[i]];
    return kind === "class"
      ? { kind, text: c.className(c.lift_class[i]), lift: c.lift[i] }
      : { kind, text: c.frequency[i] > 0 ? WORDS[kind] : "never fired", lift: null };
  };
  CLT.namePill = (c, i) => {
    const { kind, text, lift } = CLT.featureName(c, i);
    const why =
      kind === "class" ? `${text}: ${CLT.num(lift, 2)} times as often among its images as among all` : WHY[kind];
    return h(
      "span",
      { class: `name ${kind}`, title: why },
      kind === "person" ? h("span", { "aria-hidden": "true" }, "✎") : null,
      h("span", { class: "cut" }, text),
      lift === null ? null : h("small", {}, `×${CLT.num(lift, 2)}`),
    );
  };

  // 0: agrees, or nothing to compare; 1: its direct effect raises other classes; 2: it pushes its own class down
  CLT.CONFLICTS = [null, "writes for others", "pushes its class down"];
  CLT.conflictBadge = (c, i) => {
    const found = c.conflict[i];
    if (!found) return null;
    const name = c.className(c.lift_class[i]);
    const why =
      found === 2
        ? `It fires for ${name}, and makes it less likely: on the images predicted as ${name} its total effect is clearly negative.`
        : `It fires for ${name}, but its total effect there is not clearly positive, and eight other classes are raised more by its direct effect.`;
    return h("span", { class: "badge", title: why }, CLT.CONFLICTS[found], h("span", { class: "sr" }, `: ${why}`));
  };
})();
