// A saved edit whose values are moved: what the stored images are seen as then. Needs the server.
(() => {
  "use strict";
  const { h } = CLT;
  const NAMED = 6; // features that a slider of many names

  // edits that move together: each by itself where there are few, else those of one kind and value
  function groups(edits, most) {
    if (edits.length <= most) return edits.map((edit) => [edit]);
    const found = new Map();
    for (const edit of edits) {
      const key = `${edit.kind} ${edit.value}`;
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(edit);
    }
    return [...found.values()];
  }
  const at = (edit) => (edit.position === undefined ? "" : ` @${edit.position}`);

  CLT.steering.live = async (data, c, sprites) => {
    if (!CLT.live.on) return null;
    const about = await CLT.live.about();
    const title = "Move it";
    if (!about.steers || data.edits.length > about.most)
      return CLT.card(title, {}, CLT.empty(`At most ${about.most} features are moved at once here.`));
    const said = h("p", { class: "note error", role: "status" });
    const problem = (error) => {
      if (error.name !== "AbortError") said.textContent = error.message;
    };
    const edits = data.edits.map((edit) => ({ ...edit }));
    const simple = edits.length <= about.edits && edits.every((edit) => edit.position === undefined);
    const pick = (key) =>
      CLT.go("live", [], {
        key,
        edits: simple ? CLT.live.edits.text(edits) : "",
        tokens: data.tokens === "all" ? "" : data.tokens,
        base: data.base === "original" ? "" : data.base,
      });
    const many = CLT.live.flips({
      about,
      ask: () => ({ edits, tokens: data.tokens, base: data.base }),
      pick,
      problem,
    });
    const moved = () => {
      said.textContent = "";
      many.follow();
    };
    function slider(group) {
      const [first] = group;
      const one = group.length === 1;
      const limits = group
        .map((e) => CLT.live.limits(c, e.kind, e.layer, e.feature))
        .reduce((a, b) => (b[1] > a[1] ? b : a));
      const who = one ? `L${first.layer} · ${first.feature}${at(first)}` : `${group.length} features`;
      return h(
        "div",
        { class: "slider fixed" },
        one ? CLT.strongest(c, sprites, first.layer, first.feature) : h("span", { class: "thumb" }, `${group.length}`),
        h(
          "span",
          { class: "who" },
          one ? CLT.steering.feature(first) : who,
          h(
            "span",
            { class: "cut" },
            one
              ? c && CLT.featureName(c, first.layer * c.size + first.feature).text
              : group
                  .slice(0, NAMED)
                  .map((e) => `L${e.layer} · ${e.feature}${at(e)}`)
                  .join(", ") + (group.length > NAMED ? " …" : ""),
          ),
        ),
        h("span", { class: "how" }, CLT.live.how(first.kind)),
        CLT.live.range({
          label: `${who}: ${CLT.live.how(first.kind)}`,
          kind: first.kind,
          value: first.value,
          limits,
          onvalue: (value) => {
            for (const edit of group) edit.value = value;
            moved();
          },
        }),
      );
    }
    const sliders = h("div", { class: "sliders" });
    function saved() {
      data.edits.forEach((edit, n) => {
        edits[n].value = edit.value;
      });
      sliders.replaceChildren(...groups(edits, about.edits).map(slider));
      moved();
    }
    setTimeout(saved); // once the page is there
    return CLT.card(
      title,
      {
        note: `On ${CLT.count(about.stored.length)} images of the ${about.split} split, which the server holds. A code goes as far as the largest one of the feature goes.`,
        tools: h("button", { type: "button", class: "plain", onclick: saved }, "As saved"),
      },
      sliders,
      said,
      many.nodes,
    );
  };
})();
