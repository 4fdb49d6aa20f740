// An image that was dropped or picked, features that are moved, and what the model says then.
(() => {
  "use strict";
  const { h } = CLT;
  // what was at work when the reader looked at another page
  const kept = { opened: null, edits: [], tokens: "all", base: "original" };

  CLT.pages.live = async (_, query) => {
    if (!CLT.live.on) return CLT.live.needed("live");
    const about = await CLT.live.about();
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    if (query.edits !== undefined) kept.edits = CLT.live.edits.parse(query.edits, about);
    if (["all", "cls", "patch"].includes(query.tokens)) kept.tokens = query.tokens;
    if (["original", "replaced"].includes(query.base)) kept.base = query.base;
    const { edits } = kept;

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
    const changes = () => ({ edits: edits.map((e) => ({ ...e })), tokens: kept.tokens, base: kept.base });

    const picture = h("div", { class: "drop-picture" });
    async function open(promise, key) {
      fine("The model looks at it …");
      picture.setAttribute("aria-busy", "true");
      try {
        kept.opened = { ...(await promise), key };
        fine();
        shown();
        moved();
      } catch (error) {
        problem(error);
      } finally {
        picture.removeAttribute("aria-busy");
      }
    }
    const take = (file) => open(CLT.live.drop(file), null);
    const pick = (key) => open(CLT.live.ask("pick", { key }), key);

    const one = CLT.live.probabilities({
      about,
      ask: () => kept.opened && { image: kept.opened.image, ...changes() },
      fine,
      problem,
    });
    const many = CLT.live.flips({ about, ask: () => (edits.length ? changes() : null), pick, problem });
    function moved() {
      CLT.remember("live", [], {
        key: kept.opened?.key,
        edits: CLT.live.edits.text(edits),
        tokens: kept.tokens === "all" ? "" : kept.tokens,
        base: kept.base === "original" ? "" : kept.base,
      });
      one.follow();
      many.follow();
    }
    const sliders = CLT.live.sliders({ about, c, sprites, edits, moved });
    function shown() {
      picture.replaceChildren(...CLT.live.shown(about, kept.opened));
      sliders.suggest(kept.opened.suggested);
    }
    const choose = (label, choices, key) =>
      CLT.segments(label, choices, kept[key], (v) => {
        kept[key] = v;
        moved();
      });

    if (query.key && kept.opened?.key !== query.key) pick(query.key);
    else if (kept.opened) {
      shown();
      setTimeout(moved);
    } else if (about.stored.length) pick(about.stored[0][0]);

    const steering = [
      h(
        "section",
        { class: "card" },
        h(
          "header",
          {},
          h("h2", {}, "Features that are moved"),
          h(
            "span",
            { class: "row" },
            CLT.copyButton("Copy as command", () => CLT.steering.command(edits, kept)),
            h("button", { type: "button", class: "plain", onclick: sliders.none }, "As it was"),
          ),
        ),
        sliders.box,
        h(
          "div",
          { class: "tools" },
          choose(
            "Tokens",
            [
              ["all", "all tokens"],
              ["cls", "[CLS]"],
              ["patch", "patches"],
            ],
            "tokens",
          ),
          choose(
            "Model",
            [
              ["original", "CLIP's own MLPs"],
              ["replaced", "all MLPs replaced"],
            ],
            "base",
          ),
        ),
        sliders.further,
      ),
      h(
        "section",
        { class: "card" },
        h("h2", {}, `On ${CLT.count(about.stored.length)} images of the ${about.split} split`),
        many.nodes,
      ),
    ];
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
          h("section", { class: "card stack" }, CLT.live.zone({ take, problem }), picture),
          CLT.live.picker({ about, pick, problem }),
        ),
        h(
          "div",
          { class: "w8 stack" },
          h(
            "section",
            { class: "card seen" },
            h("h2", {}, "What it is seen as"),
            one.nodes,
            h("p", { class: "note" }, "Grey: without the changes."),
          ),
          about.steers
            ? steering
            : CLT.empty(
                "A transcoder of topology sae cannot steer: its codes are read from what they would change. The image's page shows its features.",
              ),
        ),
      ),
    ];
  };
})();
