// Features that are moved: a slider each, and where to find further ones.
(() => {
  "use strict";
  const { h } = CLT;
  // least, largest and smallest step of a value: of `times` as they are, of the others in largest codes of the feature
  const RANGES = { scale: [-1, 4, 0.05], set: [0, 1.25, 0.005], add: [-1.25, 1.25, 0.005] };
  const KINDS = [
    ["scale", "times"],
    ["set", "set to"],
    ["add", "plus"],
  ];
  const FOUND = 12;

  // `3:120:scale:0,...` as in the address; what is no feature of this model is left out
  CLT.live.edits = {
    parse(text, about) {
      const edits = (text || "").split(",").map((part) => {
        const [layer, feature, kind, value] = part.split(":");
        return {
          layer: CLT.whole(layer, about.layers),
          feature: CLT.whole(feature, about.features),
          kind,
          value: Number(value),
        };
      });
      return edits
        .filter((e) => e.layer !== null && e.feature !== null && e.kind in RANGES && Number.isFinite(e.value))
        .slice(0, about.edits);
    },
    text: (edits) => edits.map((e) => [e.layer, e.feature, e.kind, Number(e.value.toPrecision(4))].join(":")).join(","),
  };

  // how a value is reached: "times", "set to", "plus"
  CLT.live.how = (kind) => KINDS.find(([k]) => k === kind)[1];
  // least, largest and step of a value: codes go as far as the largest one of the feature goes (c: the catalogue)
  CLT.live.limits = (c, kind, layer, feature) => {
    const largest = (kind === "scale" ? 1 : c?.max_code[layer * c.size + feature]) || 10;
    const [low, high, step] = RANGES[kind].map((v) => v * Math.abs(largest));
    return [largest < 0 ? -high : low, high, step]; // a signed code
  };
  // a slider and the value beside it; `onvalue(value)` follows the hand
  CLT.live.range = ({ label, kind, value, limits: [low, high, step], onvalue }) => {
    const out = h("output", {}, CLT.num(value));
    const input = h("input", {
      type: "range",
      min: Math.min(low, value),
      max: Math.max(high, value),
      step: kind === "scale" ? step : "any",
      value,
      "aria-label": label,
      oninput: (e) => {
        out.textContent = CLT.num(Number(e.target.value));
        onvalue(Number(e.target.value));
      },
    });
    return [input, out];
  };

  // edits: the list that is changed; `moved()` after every change
  CLT.live.sliders = ({ about, c, sprites, edits, moved }) => {
    const box = h("div", { class: "sliders" });
    const full = h("p", { class: "note error", role: "status" });
    const chips = h("div", { class: "chips" });
    const found = h("div", { class: "chips" });
    const at = (layer, feature) => layer * c.size + feature;
    const name = (layer, feature) => (c ? CLT.featureName(c, at(layer, feature)).text : "");

    function slider(edit, n) {
      const title = `L${edit.layer} · ${edit.feature}`;
      const range = CLT.live.range({
        label: `${title}: ${CLT.live.how(edit.kind)}`,
        kind: edit.kind,
        value: edit.value,
        limits: CLT.live.limits(c, edit.kind, edit.layer, edit.feature),
        onvalue: (value) => {
          edit.value = value;
          moved();
        },
      });
      const how = (e) => {
        edit.kind = e.target.value;
        edit.value = edit.kind === "scale" ? 1 : 0;
        draw();
        moved();
      };
      const away = () => {
        edits.splice(n, 1);
        draw();
        moved();
      };
      return h(
        "div",
        { class: "slider" },
        CLT.strongest(c, sprites, edit.layer, edit.feature),
        h(
          "span",
          { class: "who" },
          h("a", { href: CLT.href("feature", [edit.layer, edit.feature]) }, title),
          h("span", { class: "cut" }, name(edit.layer, edit.feature)),
        ),
        h(
          "select",
          { "aria-label": `How ${title} is changed`, onchange: how },
          KINDS.map(([k, text]) => h("option", { value: k, selected: k === edit.kind }, text)),
        ),
        range,
        h("button", { type: "button", class: "icon", "aria-label": `Take ${title} away`, onclick: away }, "×"),
      );
    }
    function draw() {
      full.textContent = "";
      box.replaceChildren(
        full,
        ...(edits.length
          ? edits.map(slider)
          : [CLT.empty("No feature is moved. Take one of those below, or look for one.")]),
      );
    }
    function add(layer, feature) {
      if (edits.some((e) => e.layer === layer && e.feature === feature)) return;
      if (edits.length >= about.edits) {
        full.textContent = `${about.edits} features at once are the most: take one away first.`;
        return;
      }
      edits.push({ layer, feature, kind: "scale", value: 0 });
      draw();
      moved();
    }
    const chip = (layer, feature, text) =>
      h(
        "button",
        { type: "button", class: "chip", onclick: () => add(layer, feature) },
        h("b", {}, `L${layer} · ${feature}`),
        " ",
        name(layer, feature),
        text ? h("span", { class: "ci" }, ` ${text}`) : null,
      );
    // the clear ones first; where none is clear, all that fire
    function fitting(text) {
      const kept = ["clear", "all"].map((preset) => CLT.filterFeatures(c, { preset, layer: "", text, dead: false }));
      return CLT.sortFeatures(c, kept.find(({ count }) => count) || kept[1], "monosemanticity", true);
    }
    function search(text) {
      const hits = c && text.trim() ? [...fitting(text)] : [];
      found.replaceChildren(...hits.slice(0, FOUND).map((i) => chip(c.layer(i), c.feature(i))));
      if (text.trim() && !hits.length)
        found.replaceChildren(h("span", { class: "note" }, "No feature that fires is found by this."));
    }
    let timer = null;
    const look = h("input", {
      type: "search",
      placeholder: "Look for a feature: class, word, or 3:120",
      "aria-label": "Look for a feature to move",
      oninput: (e) => {
        clearTimeout(timer);
        timer = setTimeout(() => search(e.target.value), 150);
      },
    });
    draw();
    return {
      box,
      none() {
        edits.length = 0;
        draw();
        moved();
      },
      suggest: (list) =>
        chips.replaceChildren(
          ...list.map(([layer, feature, effect]) =>
            chip(layer, feature, `${effect > 0 ? "+" : ""}${CLT.fixed(effect, 1)}`),
          ),
        ),
      further: [
        h("h3", {}, "What decides this image"),
        h(
          "p",
          { class: "note" },
          "By how much each feature's codes move the margin between its two most probable classes, to first order.",
        ),
        chips,
        h("div", { class: "tools", style: { "margin-top": "12px" } }, look),
        found,
      ],
    };
  };
})();
