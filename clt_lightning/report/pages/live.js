// An image that was dropped or picked, features that are moved, and what the model says then.
(() => {
  "use strict";
  const { h } = CLT;
  const PAGE = 24;
  const RANGES = { scale: [-1, 4, 0.05], set: [0, 1, 0.01], add: [-1, 1, 0.01] };
  const KINDS = [
    ["scale", "times"],
    ["set", "set to"],
    ["add", "plus"],
  ];
  // what was at work when the reader looked at another page
  const kept = { opened: null, edits: [], tokens: "all", base: "original" };

  const best = (p, n) =>
    p
      .map((v, c) => [v, c])
      .sort((a, b) => b[0] - a[0])
      .slice(0, n)
      .map(([, c]) => c);

  function parse(text, about) {
    const edits = [];
    for (const part of (text || "").split(",")) {
      const [layer, feature, kind, value] = part.split(":");
      const edit = { layer: Number(layer), feature: Number(feature), kind, value: Number(value) };
      const fits = [edit.layer, edit.feature].every(Number.isInteger) && kind in RANGES && Number.isFinite(edit.value);
      if (fits && edit.layer >= 0 && edit.layer < about.layers && edit.feature >= 0 && edit.feature < about.features)
        edits.push(edit);
    }
    return edits.slice(0, about.edits);
  }

  CLT.pages.live = async (_, query) => {
    if (!CLT.live.on) return CLT.live.needed("live");
    const about = await CLT.live.about();
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    if (query.edits !== undefined) kept.edits = parse(query.edits, about);
    if (query.tokens) kept.tokens = query.tokens;
    if (query.base) kept.base = query.base;
    const { edits } = kept;
    let { opened } = kept;

    const said = h("p", { class: "note", role: "status" });
    const problem = (error) => {
      if (error.name === "AbortError") return;
      said.textContent = error.message;
      said.classList.add("error");
    };
    const fine = (text = "") => {
      said.textContent = text;
      said.classList.remove("error");
    };
    const remember = () =>
      CLT.remember("live", [], {
        key: opened?.key,
        edits: edits.map((e) => [e.layer, e.feature, e.kind, Number(e.value.toPrecision(4))].join(":")).join(","),
        tokens: kept.tokens === "all" ? "" : kept.tokens,
        base: kept.base === "original" ? "" : kept.base,
      });
    const name = (layer, feature) => {
      if (!c) return "";
      const i = layer * c.size + feature;
      return CLT.notes.of(layer, feature).label || CLT.featureName(c, i).text;
    };

    // -- the image --------------------------------------------------------------------------------------------------
    const picture = h("div", { class: "drop-picture" });
    const file = h("input", {
      type: "file",
      accept: "image/*",
      id: "dropfile",
      class: "sr",
      onchange: (e) => {
        if (e.target.files[0]) take(e.target.files[0]);
        e.target.value = "";
      },
    });
    const zone = h(
      "label",
      {
        class: "drop",
        for: "dropfile",
        ondragover: (e) => {
          e.preventDefault();
          zone.classList.add("over");
        },
        ondragleave: () => zone.classList.remove("over"),
        ondrop: (e) => {
          e.preventDefault();
          zone.classList.remove("over");
          if (e.dataTransfer.files[0]) take(e.dataTransfer.files[0]);
          else problem(new Error("What was dropped is no file: save the picture first, and drop that."));
        },
      },
      h("b", {}, "Drop an image"),
      h("span", {}, "or click to choose one, or paste one"),
      file,
    );
    const paste = (e) => {
      if (!zone.isConnected) {
        window.removeEventListener("paste", paste);
        return;
      }
      const found = [...(e.clipboardData?.files || [])][0];
      if (found) take(found);
    };
    window.addEventListener("paste", paste);

    async function open(promise, key) {
      fine("The model looks at it …");
      picture.setAttribute("aria-busy", "true");
      try {
        const found = await promise;
        opened = { ...found, key };
        kept.opened = opened;
        fine();
        shown();
        remember();
        move();
      } catch (error) {
        problem(error);
      } finally {
        picture.removeAttribute("aria-busy");
      }
    }
    const take = (chosen) => open(CLT.live.drop(chosen), null);
    const pick = (key) => open(CLT.live.ask("pick", { key }), key);

    function shown() {
      if (!opened) return;
      const label = opened.label >= 0 ? about.classnames[opened.label] : "";
      picture.replaceChildren(
        h("img", { src: opened.picture, alt: opened.name }),
        h(
          "div",
          {},
          h("b", { class: "cut" }, opened.name),
          label ? h("span", {}, `labelled ${label}`) : null,
          h(
            "a",
            { href: CLT.href("own", [opened.image], opened.key ? { key: opened.key } : {}) },
            "Its page: features and logit →",
          ),
        ),
      );
      suggestions();
    }

    // -- stored images ----------------------------------------------------------------------------------------------
    let from = 0;
    const grid = h("div", { class: "shots small picks" });
    async function picks() {
      const numbers = about.stored.map((_, n) => n).slice(from, from + PAGE);
      const { pictures } = await CLT.live.ask("thumbnails", { images: numbers });
      grid.replaceChildren(
        ...numbers.map((n, at) =>
          h(
            "button",
            {
              type: "button",
              class: "pick",
              title: about.stored[n][0],
              "aria-label": `Take ${about.stored[n][0]}${about.stored[n][1] >= 0 ? `, ${about.classnames[about.stored[n][1]]}` : ""}`,
              onclick: () => pick(about.stored[n][0]),
            },
            h("img", { src: pictures[at], alt: "" }),
          ),
        ),
      );
    }
    const more = h(
      "button",
      {
        type: "button",
        class: "plain",
        onclick: () => {
          from = from + PAGE >= about.stored.length ? 0 : from + PAGE;
          picks().catch(problem);
        },
      },
      "others",
    );
    const byKey = h(
      "form",
      {
        class: "row",
        onsubmit: (e) => {
          e.preventDefault();
          const key = e.target.elements.key.value.trim();
          if (key) pick(key);
        },
      },
      h("input", {
        type: "search",
        name: "key",
        placeholder: "or an image's key",
        "aria-label": `Key of an image of the ${about.split} split`,
      }),
      h("button", { type: "submit", class: "plain" }, "Take"),
    );

    // -- probabilities ----------------------------------------------------------------------------------------------
    const bars = h("div", { class: "twobars" });
    const headline = h("p", { class: "headline", role: "status" });
    function probabilities({ before, after }) {
      const classes = [...new Set([...best(before, 5), ...best(after, 5)])].sort((x, y) => before[y] - before[x]);
      bars.replaceChildren(
        ...classes.map((k) =>
          h(
            "div",
            { class: "twobar" },
            h("span", { class: "cut", title: about.classnames[k] }, about.classnames[k]),
            h(
              "span",
              { class: "bars", "aria-hidden": "true" },
              h("i", { class: "was", style: { width: `${100 * before[k]}%` } }),
              h("i", { class: "is", style: { width: `${100 * after[k]}%` } }),
            ),
            h("span", { class: "n" }, CLT.percent(before[k])),
            h("b", { class: "n", "data-class": k }, CLT.percent(after[k])),
          ),
        ),
      );
      const [was, is] = [best(before, 1)[0], best(after, 1)[0]];
      headline.replaceChildren(
        was === is
          ? `Seen as ${about.classnames[is]}, ${CLT.percent(after[is])}.`
          : h(
              "span",
              {},
              `Seen as ${about.classnames[was]} before; now as `,
              h("b", {}, about.classnames[is]),
              `, ${CLT.percent(after[is])}.`,
            ),
      );
    }

    // -- sliders ----------------------------------------------------------------------------------------------------
    const sliders = h("div", { class: "sliders" });
    const add = (layer, feature) => {
      if (edits.some((e) => e.layer === layer && e.feature === feature)) return;
      if (edits.length >= about.edits) {
        problem(new Error(`${about.edits} features at once are the most: take one away first.`));
        return;
      }
      edits.push({ layer, feature, kind: "scale", value: 0 });
      fine();
      rows();
      move();
    };
    function limits(edit) {
      const [low, high, step] = RANGES[edit.kind];
      if (edit.kind === "scale") return [low, high, step];
      const peak = c ? c.max_code[edit.layer * c.size + edit.feature] || 1 : 10;
      return [low * peak * 1.25, high * peak * 1.25, (step * peak) / 2];
    }
    function rows() {
      sliders.replaceChildren(
        ...(edits.length
          ? edits.map((edit, n) => {
              const i = c ? edit.layer * c.size + edit.feature : -1;
              const title = `L${edit.layer} · ${edit.feature}`;
              const [low, high, step] = limits(edit);
              const value = h("output", {}, CLT.num(edit.value));
              const range = h("input", {
                type: "range",
                min: Math.min(low, edit.value),
                max: Math.max(high, edit.value),
                step: edit.kind === "scale" ? step : "any",
                value: edit.value,
                "aria-label": `${title}: ${KINDS.find(([k]) => k === edit.kind)[1]}`,
                oninput: (e) => {
                  edit.value = Number(e.target.value);
                  value.textContent = CLT.num(edit.value);
                  move();
                },
              });
              return h(
                "div",
                { class: "slider" },
                c && c.image[i] >= 0
                  ? CLT.thumb(sprites, c.image[i], { mode: "image", alt: "its strongest image" })
                  : h("span", { class: "thumb" }),
                h(
                  "span",
                  { class: "who" },
                  h("a", { href: CLT.href("feature", [edit.layer, edit.feature]) }, title),
                  h("span", { class: "cut" }, name(edit.layer, edit.feature)),
                ),
                h(
                  "select",
                  {
                    "aria-label": `How ${title} is changed`,
                    onchange: (e) => {
                      edit.kind = e.target.value;
                      edit.value = edit.kind === "scale" ? 1 : 0;
                      rows();
                      move();
                    },
                  },
                  KINDS.map(([k, text]) => h("option", { value: k, selected: k === edit.kind }, text)),
                ),
                range,
                value,
                h(
                  "button",
                  {
                    type: "button",
                    class: "icon",
                    "aria-label": `Take ${title} away`,
                    onclick: () => {
                      edits.splice(n, 1);
                      rows();
                      move();
                    },
                  },
                  "×",
                ),
              );
            })
          : [CLT.empty("No feature is moved. Take one of those below, or look for one.")]),
      );
    }
    const chips = h("div", { class: "chips" });
    const chip = (layer, feature, text) =>
      h(
        "button",
        { type: "button", class: "chip", onclick: () => add(layer, feature) },
        h("b", {}, `L${layer} · ${feature}`),
        " ",
        name(layer, feature),
        text ? h("span", { class: "ci" }, ` ${text}`) : null,
      );
    function suggestions() {
      chips.replaceChildren(
        ...(opened
          ? opened.suggested.map(([layer, feature, effect]) =>
              chip(layer, feature, `${effect > 0 ? "+" : ""}${CLT.fixed(effect, 1)}`),
            )
          : []),
      );
    }
    const found = h("div", { class: "chips" });
    let timer = null;
    const look = h("input", {
      type: "search",
      placeholder: "Look for a feature: class, word, or 3:120",
      "aria-label": "Look for a feature to move",
      oninput: (e) => {
        clearTimeout(timer);
        const text = e.target.value;
        timer = setTimeout(() => {
          if (!c || !text.trim()) {
            found.replaceChildren();
            return;
          }
          const hits = CLT.searchFeatures(c, { text });
          const order = [...hits].sort(
            (a, b) =>
              c.image_frequency[b] * (c.monosemanticity[b] || 0) - c.image_frequency[a] * (c.monosemanticity[a] || 0),
          );
          found.replaceChildren(...order.slice(0, 12).map((i) => chip(c.layer(i), c.feature(i))));
          if (!order.length)
            found.replaceChildren(h("span", { class: "note" }, "No feature that fires is found by this."));
        }, 150);
      },
    });

    // -- what follows a move ------------------------------------------------------------------------------------------
    let busy = false;
    let again = false;
    const question = () => ({ edits: edits.map((e) => ({ ...e })), tokens: kept.tokens, base: kept.base });
    async function one() {
      if (!opened) return;
      if (busy) {
        again = true; // only the last place of a slider counts
        return;
      }
      busy = true;
      try {
        do {
          again = false;
          probabilities(await CLT.live.ask("steer", { image: opened.image, ...question() }));
        } while (again && picture.isConnected);
        fine();
      } catch (error) {
        problem(error);
      } finally {
        busy = false;
      }
    }
    let waiting = null;
    let running = null;
    const flips = h("div", {});
    const progress = h("p", { class: "note", role: "status" });
    function many() {
      clearTimeout(waiting);
      running?.abort();
      if (!about.stored.length || !edits.length) {
        flips.replaceChildren();
        progress.textContent = about.stored.length ? "" : "No images are stored (--images 0).";
        return;
      }
      waiting = setTimeout(async () => {
        running = new AbortController();
        const list = [];
        flips.replaceChildren();
        try {
          await CLT.live.follow("flips", question(), running.signal, (line) => {
            list.push(...line.flips);
            progress.textContent = `${CLT.count(line.done)} of ${CLT.count(line.images)} images, ${list.length} of another most probable class`;
            if (line.mean) ended(line, list);
          });
        } catch (error) {
          problem(error);
        }
      }, 250);
    }
    async function ended(line, list) {
      const order = line.mean.map((v, k) => [v, k]).sort((a, b) => b[0] - a[0]);
      const gains = [...order.slice(0, 4).filter(([v]) => v > 0), ...order.slice(-4).filter(([v]) => v < 0)];
      const top = line.top1 ? `; top-1 ${CLT.percent(line.top1[0])} before, ${CLT.percent(line.top1[1])} after` : "";
      progress.textContent += `${top}.`;
      const first = list.slice(0, 32);
      const { pictures } = first.length
        ? await CLT.live.ask("thumbnails", { images: first.map(([n]) => n) })
        : { pictures: [] };
      flips.replaceChildren(
        CLT.charts.bars({
          items: gains.map(([v, k]) => ({ name: about.classnames[k].slice(0, 18), value: 100 * v })),
          show: (v) => `${v > 0 ? "+" : ""}${CLT.fixed(v, 2)}`,
          label: "Change of the classes' mean probability in points",
        }),
        h(
          "div",
          { class: "flips" },
          first.map(([n, was, p, is, q], at) =>
            h(
              "button",
              { type: "button", class: "flip", onclick: () => pick(about.stored[n][0]), title: about.stored[n][0] },
              h("img", { src: pictures[at], alt: "" }),
              h(
                "span",
                {},
                `${about.classnames[was]} ${CLT.percent(p, 0)} → `,
                h("b", {}, `${about.classnames[is]} ${CLT.percent(q, 0)}`),
              ),
            ),
          ),
        ),
        list.length > first.length
          ? h("p", { class: "note" }, `${list.length - first.length} further ones are not shown.`)
          : "",
      );
    }
    function move() {
      remember();
      one();
      many();
    }

    rows();
    shown();
    picks().catch(problem);
    if (query.key && (!opened || opened.key !== query.key)) pick(query.key);
    else if (opened) move();
    else if (about.stored.length) pick(about.stored[0][0]);
    else if (edits.length) move();
    return [
      h("h1", {}, "Try it"),
      h(
        "p",
        { class: "lead" },
        "An image of yours or of the split, and features that you move: what the model says then, on this image at once and on the stored ones a moment later.",
      ),
      said,
      h(
        "div",
        { class: "grid" },
        h(
          "div",
          { class: "w4 stack" },
          h("section", { class: "card stack" }, zone, picture),
          h("section", { class: "card" }, h("header", {}, h("h2", {}, "Or pick one"), more), grid, byKey),
        ),
        h(
          "div",
          { class: "w8 stack" },
          h(
            "section",
            { class: "card" },
            h("h2", {}, "What it is seen as"),
            headline,
            bars,
            h("p", { class: "note" }, "Grey: without the changes."),
          ),
          about.steers
            ? h(
                "section",
                { class: "card" },
                h(
                  "header",
                  {},
                  h("h2", {}, "Features that are moved"),
                  h(
                    "button",
                    {
                      type: "button",
                      class: "plain",
                      onclick: () => {
                        edits.length = 0;
                        rows();
                        move();
                      },
                    },
                    "As it was",
                  ),
                ),
                sliders,
                h(
                  "div",
                  { class: "tools" },
                  CLT.segments(
                    "Tokens",
                    [
                      ["all", "all tokens"],
                      ["cls", "[CLS]"],
                      ["patch", "patches"],
                    ],
                    kept.tokens,
                    (v) => {
                      kept.tokens = v;
                      move();
                    },
                  ),
                  CLT.segments(
                    "Model",
                    [
                      ["original", "CLIP's own MLPs"],
                      ["replaced", "all MLPs replaced"],
                    ],
                    kept.base,
                    (v) => {
                      kept.base = v;
                      move();
                    },
                  ),
                ),
                h("h3", {}, "What decides this image"),
                h(
                  "p",
                  { class: "note" },
                  "By how much each feature's codes move the margin between its two most probable classes, to first order.",
                ),
                chips,
                h("div", { class: "tools", style: { "margin-top": "12px" } }, look),
                found,
              )
            : CLT.empty("A transcoder of topology sae cannot steer: its codes are read from what they would change."),
          about.steers
            ? h(
                "section",
                { class: "card" },
                h("h2", {}, `On ${CLT.count(about.stored.length)} images of the ${about.split} split`),
                progress,
                flips,
              )
            : null,
        ),
      ),
    ];
  };
})();
