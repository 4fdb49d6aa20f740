// Edits that were saved: what each does to the classes, and which images are named otherwise.
(() => {
  "use strict";
  const { h } = CLT;
  const NAMED = 3; // features that the list names
  const WHERE = { all: "all tokens", cls: "[CLS]", register: "the registers", patch: "the patches" };
  const BASE = { original: "CLIP's own MLPs stay", replaced: "all MLPs are replaced" };
  const text = (edit) =>
    `L${edit.layer} · ${edit.feature}${edit.position === undefined ? "" : ` @${edit.position}`} ${CLT.live.how(edit.kind)} ${CLT.num(edit.value)}`;

  const difference = ({ top1 }) =>
    top1
      ? {
          v: top1.difference.value,
          t: `${CLT.steering.points(top1.difference.value, 1)} (${CLT.steering.points(top1.difference.low, 1)} to ${CLT.steering.points(top1.difference.high, 1)})`,
        }
      : "–";

  function list(saved, current) {
    const rows = saved.map((s) => [
      h("a", { href: CLT.href("steering", [s.name]), "aria-current": s === current ? "true" : null }, s.name),
      h(
        "span",
        {},
        s.edits.slice(0, NAMED).map(text).join(", "),
        s.count > NAMED ? ` and ${s.count - NAMED} more` : "",
      ),
      { v: s.images, t: CLT.count(s.images) },
      { v: s.changed, t: CLT.count(s.changed) },
      { v: s.flips.gained, t: CLT.count(s.flips.gained) },
      { v: s.flips.lost, t: CLT.count(s.flips.lost) },
      difference(s),
    ]);
    return CLT.card(
      "Saved edits",
      {},
      CLT.scroll(
        "Saved edits",
        CLT.table(
          [
            { name: "Name", text: true },
            { name: "what", text: true },
            "images",
            "named otherwise",
            "now right",
            "now wrong",
            "top-1, points (95 %)",
          ],
          rows,
          { strong: (row) => row[0].getAttribute("aria-current") === "true" },
        ),
      ),
    );
  }

  function what(data, c, sprites) {
    const one = (edit) =>
      h(
        "li",
        { class: "edited" },
        CLT.strongest(c, sprites, edit.layer, edit.feature),
        h(
          "span",
          { class: "who" },
          CLT.steering.feature(edit),
          h("span", { class: "cut" }, c ? CLT.featureName(c, edit.layer * c.size + edit.feature).text : ""),
        ),
        h("b", {}, `${CLT.live.how(edit.kind)} ${CLT.num(edit.value)}`),
      );
    const few = data.edits.slice(0, 8);
    const rest = data.edits.slice(8);
    return CLT.card(
      data.name,
      {
        note: `At ${WHERE[data.tokens] || data.tokens} of ${CLT.count(data.images)} images of the ${data.split} split; ${BASE[data.base] || data.base}.${data.nodes.length ? ` From the set ${data.nodes.join(", ")}.` : ""}`,
      },
      h("ul", { class: "edits" }, few.map(one)),
      rest.length ? null : CLT.copyButton("Copy as command", () => CLT.steering.command(data.edits, data, data.name)),
      rest.length
        ? h(
            "details",
            {},
            h("summary", {}, `${CLT.count(rest.length)} further features`),
            h("ul", { class: "edits" }, rest.map(one)),
          )
        : null,
    );
  }

  function result(data) {
    const tile = (value, name, note) =>
      h("div", { class: "tile" }, h("span", {}, name), h("b", {}, value), h("small", {}, note));
    const { top1 } = data;
    return h(
      "div",
      { class: "tiles" },
      tile(CLT.count(data.changed), "images named otherwise", `of ${CLT.count(data.images)}`),
      data.labelled ? tile(CLT.count(data.flips.gained), "now right", "and wrong before") : null,
      data.labelled ? tile(CLT.count(data.flips.lost), "now wrong", "and right before") : null,
      top1
        ? tile(
            `${CLT.percent(top1.before)} → ${CLT.percent(top1.after)}`,
            "top-1",
            `${CLT.steering.points(top1.difference.value, 1)} points, 95 % ${CLT.steering.points(top1.difference.low, 1)} to ${CLT.steering.points(top1.difference.high, 1)}, on the same ${CLT.count(data.labelled)} images`,
          )
        : null,
    );
  }

  CLT.load("steering").then((saved) => saved && CLT.navigation("steering"));

  CLT.pages.steering = async (parts) => {
    const saved = await CLT.load("steering");
    const head = h("h1", {}, "Steering");
    if (!saved) return [head, CLT.missing("steering", "No edit of features was saved")];
    const current = parts.length ? saved.find((s) => s.name === parts[0]) : saved[0];
    if (!current) throw new CLT.Nowhere(`There is no saved edit ${parts[0]}.`);
    const [data, c, sprites, report] = await Promise.all([
      CLT.load(`steering/${current.name}`),
      CLT.catalogue(),
      CLT.load("sprites"),
      CLT.load("report"),
    ]);
    const live = await CLT.steering.live(data, c, sprites);
    return [
      head,
      h(
        "p",
        { class: "lead" },
        "Features that were set, multiplied or moved, and what the model says then: which classes gain and lose, and which images are named otherwise, both ways.",
      ),
      h(
        "div",
        { class: "stack" },
        saved.length > 1 ? list(saved, current) : null,
        result(data),
        h(
          "div",
          { class: "grid" },
          h("div", { class: "w4 stack" }, what(data, c, sprites)),
          h("div", { class: "w8 stack" }, CLT.steering.classes(data, report.files[`steering_${data.name}`])),
        ),
        live,
        data.changed ? CLT.steering.images(data) : CLT.empty("No image is named otherwise."),
      ),
    ];
  };
})();
