// Left half of a feature's card: what drives it.
(() => {
  "use strict";
  const { h } = CLT;
  const MODES = [
    ["squares", "squares"],
    ["reveal", "reveal"],
    ["image", "image"],
  ];
  let mode = "squares";

  // f: {c, i, layer, feature, meta, card, sprites, map(n)}
  CLT.cardImages = (f) => {
    const { c, card, sprites, meta } = f;
    const caption = (image, value) =>
      `${sprites.labels[image] >= 0 ? c.className(sprites.labels[image]) : sprites.keys[image]}, code ${CLT.num(value)}`;
    const all = [...card.top, ...card.quantiles.flatMap(([, list]) => list)].map(([image, value, n]) => ({
      image,
      map: f.map(n),
      peak: card.peak,
      caption: caption(image, value),
    }));
    const shot = ([image, value, n], place) => {
      const map = f.map(n);
      const cls = Math.abs(map[0]) > 0;
      return h(
        "figure",
        { class: "shot" },
        h(
          "button",
          {
            type: "button",
            class: "enlarge",
            title: "Enlarge",
            "aria-label": `Enlarge ${caption(image, value)}`,
            onclick: () => CLT.enlarge(sprites, meta.grid, all, place, mode),
          },
          CLT.thumb(sprites, image, { map, peak: card.peak, grid: meta.grid, mode, alt: "", link: false }),
        ),
        h(
          "figcaption",
          {},
          h("b", {}, CLT.num(value)),
          cls ? h("span", { class: "pill", title: `[CLS] code ${CLT.num(map[0])}` }, "[CLS]") : null,
          h(
            CLT.imageHref(image) ? "a" : "span",
            { class: "cut", title: sprites.keys[image], href: CLT.imageHref(image) },
            sprites.labels[image] >= 0 ? c.className(sprites.labels[image]) : sprites.keys[image],
          ),
        ),
      );
    };
    const top = h("div", { class: "shots big" });
    const rows = h("div", { class: "quarters" });
    function draw() {
      let place = 0;
      top.replaceChildren(...card.top.map((entry) => shot(entry, place++)));
      rows.replaceChildren(
        ...card.quantiles.map(([name, list]) =>
          h(
            "div",
            {},
            h("h4", {}, name),
            h(
              "div",
              { class: `shots fixed ${list.length < 3 ? "few" : ""}` },
              list.map((entry) => shot(entry, place++)),
            ),
          ),
        ),
      );
    }
    draw();
    const tools = CLT.segments("Drawing", MODES, mode, (v) => {
      mode = v;
      draw();
    });
    return [
      CLT.figure({
        level: 3,
        title: "Strongest images",
        note: "Squares: its code at each patch, exactly what the encoder gives, on one colour scale for this card. A picture opens large.",
        tools,
        body: h("div", {}, top, CLT.scaleFire(card.peak)),
      }),
      card.quantiles.length
        ? CLT.figure({
            level: 3,
            title: "From strong to weak",
            note: "A uniform sample of the images on which it is active, cut into equal parts.",
            body: rows,
          })
        : null,
    ];
  };

  // counts by magnitude, four bins an octave
  function codes({ card }) {
    if (!card.histogram.length) return null;
    const [first, counts] = card.histogram;
    const edge = (bin) => 2 ** ((bin - 48) / 4);
    const say = (n, bin) => `${CLT.num(edge(bin), 2)} to ${CLT.num(edge(bin + 1), 2)}: ${CLT.count(n)} codes`;
    const most = Math.max(...counts);
    // a few empty bins at either side, so that a narrow one does not look wide
    const low = Math.max(0, first - 2);
    const high = Math.min(64, Math.max(first + counts.length + 2, low + 16));
    const drawing = CLT.responsive((width) => {
      const f = CLT.charts.frame({
        width,
        height: 150,
        left: 12,
        bottom: 38,
        xs: {
          domain: [low, high],
          // at whole powers of two, as many as there is room for
          ticks: Array.from({ length: 17 }, (_, k) => 4 * k)
            .filter((b) => b >= low && b <= high)
            .filter((_, k, all) => k % Math.ceil((all.length * 46) / width) === 0),
        },
        ys: { domain: [0, most * 1.05], ticks: [] },
        xLabel: "size of the code",
        xText: (bin) => CLT.num(edge(bin), 2),
        yText: String,
        label: `Histogram of ${CLT.count(counts.reduce((a, b) => a + b, 0))} codes by size, in bins of a quarter octave; most lie between ${CLT.num(edge(first + counts.indexOf(most)), 2)} and ${CLT.num(edge(first + counts.indexOf(most) + 1), 2)}`,
      });
      counts.forEach((n, k) => {
        const x0 = f.x(first + k) + 0.5;
        f.root.append(
          CLT.svg(
            "rect",
            {
              x: x0,
              width: Math.max(1, f.x(first + k + 1) - x0 - 0.5),
              y: f.y(n),
              height: f.y(0) - f.y(n),
              fill: "var(--s0)",
            },
            CLT.svg("title", {}, say(n, first + k)),
          ),
        );
      });
      return [f.root];
    });
    return h("div", {}, h("h4", {}, "Codes"), drawing);
  }

  // share of its firings at every patch, and at [CLS]
  function positions({ card, meta }) {
    const shares = CLT.shares(card.positions);
    const [rows, columns] = meta.grid;
    const patches = shares.slice(1);
    const most = Math.max(...patches, 1e-9);
    const peak = patches.indexOf(most);
    const svg = CLT.svg("svg", {
      class: "positions",
      viewBox: `0 0 ${columns} ${rows}`,
      role: "img",
      "aria-label": `Share of its firings at every patch; largest in row ${Math.floor(peak / columns) + 1}, column ${(peak % columns) + 1}: ${CLT.percent(most)}`,
    });
    patches.forEach((v, p) => {
      svg.append(
        CLT.svg(
          "rect",
          {
            x: p % columns,
            y: Math.floor(p / columns),
            width: 1.02,
            height: 1.02,
            fill: `rgb(${CLT.fire(v / most).join(" ")})`,
          },
          CLT.svg(
            "title",
            {},
            `row ${Math.floor(p / columns) + 1}, column ${(p % columns) + 1}: ${CLT.percent(v, 2)} of its firings`,
          ),
        ),
      );
    });
    return h(
      "div",
      {},
      h("h4", {}, "Where it fires"),
      h(
        "div",
        { class: "where" },
        svg,
        h("div", {}, h("b", {}, CLT.percent(shares[0])), h("span", { class: "note" }, " of its firings at [CLS]")),
      ),
      h("div", { class: "scale" }, "0", h("i", { style: { background: CLT.fireBar() } }), CLT.percent(most)),
    );
  }
  CLT.cardFirings = (f) => {
    const { c, i } = f;
    const stat = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
    return CLT.card(
      "When and where it fires",
      { level: 3 },
      h(
        "div",
        { class: "firings" },
        codes(f),
        positions(f),
        h(
          "dl",
          { class: "record" },
          stat("tokens", CLT.percent(c.frequency[i], 3)),
          stat("images", `${CLT.percent(c.image_frequency[i], 2)} (${CLT.count(c.images[i])})`),
          stat("[CLS] tokens", CLT.percent(c.cls_frequency[i], 2)),
          stat("mean code", CLT.num(c.mean_code[i])),
          stat("largest code", CLT.num(c.max_code[i])),
          stat("monosemanticity", CLT.fixed(c.monosemanticity[i], 3)),
          c.classnames.length ? stat("label entropy", `${CLT.fixed(c.label_entropy[i], 3)} nats`) : null,
        ),
      ),
    );
  };

  const short = (name) => (name.length > 20 ? `${name.slice(0, 19)}…` : name);
  const bars = (list, label) =>
    CLT.charts.bars({
      items: list.map(([name, v]) => ({ name: short(name), value: v })),
      show: (v) => CLT.fixed(v, 3),
      label,
      nameWidth: 134,
    });
  CLT.cardClasses = ({ c, i, card }) => {
    if (!c.classnames.length && !card.nearest_words.length) return null;
    const lifted = c.lift_class[i];
    const lift = `${c.className(lifted)} is ${CLT.num(c.lift[i], 3)} times as frequent among the images on which it is active as among all (95 %, over all classes: ${CLT.num(c.lift_low[i], 3)} to ${CLT.num(card.lift_high, 3)}).`;
    return CLT.card(
      "Classes and words",
      { level: 3, note: lifted >= 0 ? lift : null },
      card.classes.length
        ? h(
            "div",
            {},
            h("h4", {}, "Share of its activation"),
            bars(
              card.classes.map(([k, v]) => [c.className(k), v]),
              "Share of its activation by class",
            ),
          )
        : null,
      h(
        "details",
        {},
        h("summary", {}, "Nearest names, by CLIP's text embeddings"),
        h("p", { class: "note" }, "Cosine to the mean direction of its images. Near is not the same as named."),
        card.nearest_classes.length
          ? bars(
              card.nearest_classes.map(([k, v]) => [c.className(k), v]),
              "Nearest class names",
            )
          : null,
        card.nearest_words.length
          ? bars(
              card.nearest_words.map(([k, v]) => [c.word(k), v]),
              "Nearest words",
            )
          : null,
      ),
    );
  };
})();
