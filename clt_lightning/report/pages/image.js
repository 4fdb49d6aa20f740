// One image: why this class and not that one, which features decide it, what happens without them.
(() => {
  "use strict";
  const { h } = CLT;
  const padded = (n) => String(n).padStart(5, "0");

  CLT.pages.image = async ([number], query) => {
    const sprites = await CLT.load("sprites");
    const n = CLT.whole(number, sprites.keys.length);
    if (n === null) throw new CLT.Nowhere(`There is no image “${number ?? ""}” in this report.`);
    if (sprites.page[n] !== "1")
      return [
        h("h1", {}, sprites.keys[n] || `Image ${n}`),
        CLT.empty(
          "This image has no page of its own. This makes one: ",
          h("code", {}, `${CLT.page("image").needs.replace(/ --images.*/, "")} --image KEY`),
          sprites.keys[n] ? ` with the key ${sprites.keys[n]}.` : "",
        ),
      ];
    const [data, list, circuits] = await Promise.all([
      CLT.load(`images/${padded(n)}`),
      CLT.load("images"),
      CLT.load("circuits"),
    ]);
    const circuit = circuits?.images.find(({ image }) => image === n);
    const order = CLT.imageOrder?.includes(n) ? CLT.imageOrder : list.image;
    const at = order.indexOf(n);
    const link = (k, rel, text) =>
      k >= 0 && k < order.length && h("a", { rel, href: CLT.href("image", [order[k]]) }, text);
    const bar = h(
      "div",
      { class: "row" },
      link(at - 1, "previous", "← previous"),
      link(at + 1, "next", "next →"),
      h("a", { href: CLT.href("images") }, "all images"),
    );
    const toCircuit = CLT.figure({
      title: "Its circuit",
      note: "Which features, errors, inputs and biases made it this class, and who adds what to whom; pin some, and see what happens without them.",
      body: circuit
        ? h(
            "p",
            { class: "row" },
            circuit.targets.map((name, k) =>
              h("a", { class: "tocircuit", href: CLT.href("circuit", [n], { target: k || "" }) }, `${name} →`),
            ),
          )
        : CLT.empty("This makes one: ", h("code", {}, CLT.circuitCommand(sprites.keys[n] || "KEY"))),
    });
    return CLT.imagePage(data, {
      sprites,
      bar,
      query,
      circuit: toCircuit,
      remember: (state) => CLT.remember("image", [n], state),
    });
  };

  // The page of any image whose data are there: of the report, or of a picture that was dropped
  CLT.imagePage = async (
    data,
    { sprites = null, bar = null, query = {}, circuit = null, remember = () => {} } = {},
  ) => {
    const s = CLT.study(data);
    const [{ classnames }, c] = await Promise.all([CLT.load("report"), CLT.catalogue()]);
    sprites ||= await CLT.load("sprites");
    const nameOf = (k) => (k === null ? "" : k === CLT.MEAN ? "the mean of all classes" : classnames[k]);
    const own = data.label >= 0 ? data.label : null;
    const named = s.classes.length > 0;
    const wrong = named && own !== null && own !== s.predicted;

    // -- the question, from the address or predicted minus runner-up
    const asked = (text) => (CLT.whole(text) !== null && s.known(Number(text)) ? Number(text) : null);
    let [more, less] = named ? s.questions[0] : [null, null];
    if (named && asked(query.more) !== null) {
      more = asked(query.more);
      less = query.less === "mean" ? CLT.MEAN : asked(query.less);
      if (less === more) less = null;
    }
    const state = {
      by: query.by === "layer" ? "layer" : "kind",
      model: query.model === "replaced" ? "replaced" : "original",
    };
    const words = () => {
      const [a, b] = [nameOf(more), nameOf(less)];
      const [short, answer] =
        less === null
          ? ["logit", `the logit of ${a}`]
          : less === CLT.MEAN
            ? ["margin", `${a} minus the mean of all classes`]
            : ["margin", `${a} minus ${b}`];
      return {
        short,
        answer: named ? answer : "",
        more: less === null ? `a higher logit of ${a}` : a,
        less: less === null ? `a lower logit of ${a}` : b,
        name: nameOf,
        asked: s.questions.map(([x, y]) => `${nameOf(x)} minus ${nameOf(y)}`).join(", and for "),
        command: `${CLT.page("image").needs.replace(/ --images.*/, "")} --image ${data.key}`,
      };
    };

    // -- the picture, and what is drawn on it
    const said = h("p", { class: "note said" });
    const rest = "Point at a feature, or tap its row, to see where it is active.";
    said.textContent = rest;
    const patches = h("section", { class: "card patchcard", "aria-live": "polite" });
    const picker = CLT.picturePicker(data.picture, s.grid, data.key || "the picture", () => {
      drawPatch();
      if (picker.picked() !== null) patches.scrollIntoView({ block: "nearest" });
    });
    const where = (p) => (p === 0 ? "[CLS]" : picker.said(p - 1).replace("patch in", "Patch in"));
    let kept = null;
    const show = (layer, feature) => {
      const map = s.map(layer, feature);
      picker.paint(map);
      if (!map) return;
      let best = 0;
      map.forEach((v, p) => {
        if (Math.abs(v) > Math.abs(map[best])) best = p;
      });
      said.replaceChildren(
        h("b", {}, `L${layer} · ${feature}`),
        ` ${nameOfFeature(layer, feature)}: code ${CLT.num(map[best])} at ${best ? picker.said(best - 1) : "[CLS]"}${best && map[0] ? `, ${CLT.num(map[0])} at [CLS]` : ""}`,
      );
    };
    const back = () => {
      if (kept) show(kept.layer, kept.feature);
      else {
        picker.paint(null);
        said.textContent = rest;
      }
    };
    const nameOfFeature = (layer, feature) => {
      if (!c) return "";
      const i = layer * c.size + feature;
      return CLT.featureName(c, i).text;
    };
    const tie = {
      name: nameOfFeature,
      link: (layer, feature) => [
        h("a", { href: CLT.href("feature", [layer, feature]) }, `L${layer} · ${feature}`),
        " ",
        h("span", { class: "ci" }, nameOfFeature(layer, feature)),
      ],
      // a mouse that comes shows the map, and so does the keyboard; a tap on the row keeps it
      watch: (node, layer, feature) => {
        node.addEventListener("pointerenter", (e) => e.pointerType === "mouse" && show(layer, feature));
        node.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && back());
        node.addEventListener("focusin", () => show(layer, feature));
        node.addEventListener("focusout", back);
        if (node.localName === "tr") {
          node.classList.add("watched");
          node.addEventListener("click", (e) => {
            if (e.target.closest("a")) return;
            const same = kept && kept.node === node;
            kept?.node.classList.remove("kept");
            kept = same ? null : { node, layer, feature };
            node.classList.toggle("kept", !same);
            back();
          });
        }
        return node;
      },
    };

    // -- cards that follow the question
    const question = h("section", { class: "card question" });
    const [terms, effects, without] = ["terms", "effects", "without"].map((name) => h("div", { class: `of-${name}` }));
    const probability = (k, replaced) => `${nameOf(k)} ${CLT.percent(s.probability(k, replaced))}`;
    function drawPatch() {
      const head = h("div", { class: "row between" }, h("h2", {}, "Codes of a patch"), picker.cls);
      patches.replaceChildren(head, CLT.patchCard(s, words(), [more, less], picker.picked(), tie, where));
    }
    function ask(a, b) {
      [more, less] = [a, b];
      if (less === more) less = null;
      draw();
    }
    function questionParts() {
      const presets = [
        ...s.questions.map(([a, b]) => [
          `${a}/${b}`,
          `${nameOf(a)} − ${nameOf(b)}${b === own ? " (its class)" : " (runner-up)"}`,
        ]),
        [`${s.predicted}/`, `logit of ${nameOf(s.predicted)}`],
      ];
      const choice = (k) => [k, `${nameOf(k)}${s.asked(k, null) ? "" : " ·"}`];
      const likely = [...s.columns].sort((a, b) => s.logit(b) - s.logit(a));
      return [
        h("h2", {}, less === null ? `What makes ${nameOf(more)}` : `Why ${nameOf(more)} and not ${nameOf(less)}`),
        h(
          "div",
          { class: "tools" },
          CLT.segments("Question", presets, `${more}/${less ?? ""}`, (v) => {
            const [a, b] = v.split("/");
            ask(Number(a), b === "" ? null : Number(b));
          }),
          CLT.select("class", likely.map(choice), more, (v) => ask(Number(v), less)),
          CLT.select(
            "minus",
            [["", "nothing: its logit"], [CLT.MEAN, "the mean of all classes"], ...likely.map(choice)],
            less ?? "",
            (v) => ask(more, v === "" ? null : Number(v)),
          ),
          h(
            "button",
            {
              type: "button",
              class: "plain",
              disabled: less === null || less === CLT.MEAN,
              onclick: () => ask(less, more),
            },
            "swap",
          ),
        ),
        s.columns.length > s.classes.length
          ? h(
              "p",
              { class: "note" },
              "·: the logits are split up for this class, but no features' effects were computed.",
            )
          : "",
      ];
    }
    // draws a card anew; who was in it by keyboard stays at the same control
    function redraw(box, make) {
      const controls = () => [...box.querySelectorAll("button, select, a")];
      const at = controls().indexOf(document.activeElement);
      box.replaceChildren(...[make()].flat().filter(Boolean));
      if (at >= 0) controls()[at]?.focus({ preventScroll: true });
    }
    function drawTerms() {
      redraw(terms, () => CLT.termsCard(s, words(), [more, less], state, drawTerms));
      tell();
    }
    function draw() {
      const w = words();
      kept = null;
      if (named) {
        redraw(question, questionParts);
        drawTerms();
        redraw(effects, () => CLT.effectsCard(s, w, [more, less], tie));
        redraw(without, () => CLT.withoutCard(s, w, [more, less], tie));
      }
      drawPatch();
      back();
    }
    function tell() {
      const first = named && s.questions[0][0] === more && s.questions[0][1] === less;
      remember({
        ...(first ? {} : { more, less: less === CLT.MEAN ? "mean" : less }),
        by: state.by === "kind" ? "" : state.by,
        model: state.model === "original" ? "" : state.model,
      });
    }
    const strongest = CLT.strongestCard(s, sprites, c, tie);
    const classes =
      named && classesCard(s, nameOf, own, (k) => ask(k, k === s.predicted ? s.questions[0][1] : s.predicted));
    draw();

    const lead = !named
      ? "The data has no class names: the codes alone."
      : [
          "Seen as ",
          h("b", {}, probability(s.predicted)),
          own === null ? "" : wrong ? [", but it is ", h("b", {}, probability(own))] : ", which it is",
          `. With all MLPs replaced: ${probability(s.replacedTop, true)}.`,
          s.full ? "" : ` Integrated gradients and more ablations: ${words().command}.`,
        ];
    return [
      h(
        "div",
        { class: "row between" },
        h(
          "h1",
          {},
          own === null ? data.key || "A picture" : nameOf(own),
          " ",
          wrong ? h("span", { class: "pill warn" }, "mistaken") : null,
        ),
        bar,
      ),
      h("p", { class: "lead" }, lead, h("br"), h("span", { class: "ci" }, data.key)),
      inView(
        h("section", { class: "card picturecard", "aria-label": "The picture" }, picker.box, said),
        patches,
        h(
          "div",
          { class: "stack imagemain" },
          named && [question, terms, effects, without, circuit, classes],
          strongest,
        ),
      ),
    ];
  };

  // the page's grid: the picture stays below the header, and the patch's codes below the picture, however high they are
  function inView(picture, ...others) {
    const page = h("div", { class: "imagepage" }, picture, others);
    const header = document.querySelector(".top");
    const sizes = new ResizeObserver(() => {
      if (!page.isConnected) return;
      page.style.setProperty("--header", `${header.offsetHeight}px`);
      page.style.setProperty("--picture", `${picture.offsetHeight}px`);
    });
    for (const box of [header, picture]) sizes.observe(box);
    return page;
  }

  function classesCard(s, nameOf, own, onpick) {
    const likely = [...s.columns].sort((a, b) => s.logit(b) - s.logit(a));
    const shown = new Set([...likely.slice(0, 6), s.replacedTop, ...(own === null ? [] : [own])].filter(s.known));
    const cell = (k, replaced) => ({
      v: s.logit(k, replaced),
      t: h(
        "span",
        {},
        CLT.fixed(s.logit(k, replaced), 2),
        " ",
        h("span", { class: "ci" }, CLT.percent(s.probability(k, replaced))),
      ),
    });
    const rows = [...shown].map((k) => [
      {
        v: nameOf(k),
        t: [
          h("button", { type: "button", class: "link", onclick: () => onpick(k) }, nameOf(k)),
          k === own ? h("span", { class: "pill" }, "its class") : null,
        ],
      },
      cell(k, false),
      cell(k, true),
    ]);
    return CLT.figure({
      title: "Classes",
      note: "Logits (100 x cosine) and probabilities. A click asks why.",
      body: h(
        "div",
        { class: "scroll" },
        CLT.table([{ name: "Class", text: true }, "untouched", "all MLPs replaced"], rows),
      ),
    });
  }
})();
