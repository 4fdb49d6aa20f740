// The command that makes an edit again, and keeps it.
(() => {
  "use strict";
  const { h } = CLT;
  // images of `steer` if nothing else is asked for
  const EVENLY = 256;
  const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
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
    // edits: what is changed; where: `tokens` and `base`, of which split, and of which images (so many, or by key)
    command: (edits, { tokens, base, split = "test", images = EVENLY, keys = [] }, name = "NAME") =>
      [
        CLT.page("steering").needs.split(" --scale")[0],
        ...edits.map((e) => `--${e.kind} ${e.layer}/${e.feature}${at(e)}=${e.value}`),
        tokens === "all" ? null : `--tokens ${tokens}`,
        base === "original" ? null : `--base ${base}`,
        split === "test" ? null : `--split ${split}`,
        keys.length || images === EVENLY ? null : `--images ${images}`,
        ...keys.map((key) => `--image ${word(key)}`),
        `--save ${name}`,
      ]
        .filter(Boolean)
        .join(" "),
  };
})();
