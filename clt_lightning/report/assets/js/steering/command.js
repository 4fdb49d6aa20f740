// The command that makes an edit again, and keeps it.
(() => {
  "use strict";
  const { h } = CLT;
  const at = (edit) => (edit.position === undefined ? "" : `@${edit.position}`);

  CLT.steering = {
    // a feature as a link to its card
    feature: (edit) =>
      h(
        "a",
        { href: CLT.href("feature", [edit.layer, edit.feature]) },
        `L${edit.layer} · ${edit.feature}`,
        edit.position === undefined ? "" : ` @${edit.position}`,
      ),
    // edits: what is changed; where: `tokens` and `base`
    command: (edits, { tokens, base }, name = "NAME") =>
      [
        CLT.page("steering").needs.split(" --scale")[0],
        ...edits.map((e) => `--${e.kind} ${e.layer}/${e.feature}${at(e)}=${CLT.short(e.value)}`),
        tokens === "all" ? null : `--tokens ${tokens}`,
        base === "original" ? null : `--base ${base}`,
        `--save ${name}`,
      ]
        .filter(Boolean)
        .join(" "),
  };
})();
