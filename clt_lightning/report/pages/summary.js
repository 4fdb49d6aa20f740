// What was trained, on what, and the numbers to look at first.
(() => {
  "use strict";
  const { h } = CLT;
  const range = (i, show = CLT.percent) => (i && i.low !== null ? `${show(i.low)} to ${show(i.high)}` : "");
  const tile = (name, value, small, bar) =>
    h("div", { class: "tile" }, h("span", {}, name), h("b", {}, value), bar, h("small", {}, small || " "));

  // where a value lies between two others, as a bar
  function between(low, value, high, label) {
    const share = CLT.clamp((value - low) / (high - low), 0, 1);
    return h(
      "span",
      { class: "way", role: "img", "aria-label": label },
      h("i", { style: { width: `${100 * share}%` } }),
    );
  }

  function reconstruction(e) {
    const r = e.reconstruction;
    if (!r) return [];
    const set = r.fvu.all ? "all" : Object.keys(r.fvu)[0];
    const out = [
      tile("Unexplained variance", CLT.percent(r.fvu[set].mean), `FVU, mean over layers, ${CLT.tokenName(set)}`),
    ];
    if (r.l0[set]) out.push(tile("Active features", CLT.num(r.l0[set].mean), "L0 per token, mean over layers"));
    if (r.dead[set])
      out.push(tile("Dead features", CLT.percent(r.dead[set].mean), `on this split, ${CLT.tokenName(set)}`));
    return out;
  }

  // what is left of a task with all MLPs replaced, between MLPs that say nothing and the original
  function task(e, name, metric, title) {
    const arms = e[name]?.arms || [];
    const whole = (a) => a.first === 0 && a.last === e.layers - 1 && a.tokens === "all";
    const find = (kind) => arms.find((a) => a.kind === kind && (kind === "original" || whole(a)))?.[metric];
    const [original, replaced, mean] = ["original", "replaced", "mean_ablated"].map(find);
    const drop = arms.find((a) => a.kind === "replaced" && whole(a))?.drop;
    const out = [];
    if (original) out.push(tile(`${title}, original CLIP`, CLT.percent(original.value), range(original)));
    if (replaced) out.push(tile(`${title}, all MLPs replaced`, CLT.percent(replaced.value), range(replaced)));
    const both = arms.find((a) => a.kind === "with_attention")?.[metric];
    if (both) out.push(tile(`${title}, all attention as well`, CLT.percent(both.value), range(both)));
    if (mean) out.push(tile(`${title}, MLPs at their mean`, CLT.percent(mean.value), `${range(mean)}: nothing kept`));
    if (original && replaced && mean && original.value > mean.value) {
      const kept = (replaced.value - mean.value) / (original.value - mean.value);
      const label = `${CLT.percent(kept)} of the way from mean ablation to the original`;
      out.push(
        tile(
          "Kept by the transcoder",
          CLT.percent(kept),
          "of the way from MLPs at their mean to the original",
          between(mean.value, replaced.value, original.value, label),
        ),
      );
    } else if (drop)
      out.push(
        tile(
          "Lost by replacing",
          `${CLT.fixed(100 * drop.value, 1)} pp`,
          range(drop, (v) => `${CLT.fixed(100 * v, 1)} pp`),
        ),
      );
    return out;
  }

  function check(e) {
    const a = e.effects?.margin?.gradient?.all;
    if (!a) return [];
    const exact = e.effects.margin.integrated?.all;
    const more = exact ? `; integrated ${CLT.fixed(exact.correlation.value, 3)}` : "";
    return [
      tile(
        "Predicted and real effects",
        CLT.fixed(a.correlation.value, 3),
        `correlation on the margin, ${range(a.correlation, (v) => CLT.fixed(v, 3))}, ${CLT.count(a.n)} pairs${more}`,
      ),
    ];
  }

  const PARTS = {
    embedding: ["embedding", "var(--s5)"],
    attention: ["attention", "var(--s4)"],
    features: ["features", "var(--s0)"],
    skip: ["linear skip", "var(--s2)"],
    bias: ["decoder bias", "var(--s3)"],
    error: ["error", "var(--s1)"],
    norm_bias: ["norm bias", "var(--s5)"],
  };
  function shares(e) {
    const logit = e.shares?.logit;
    const table = e.shares?.features;
    const bars = (target, title) => {
      const parts = logit[target];
      const items = Object.entries(PARTS)
        .filter(([key]) => parts[key] && !(key === "skip" && parts.skip.value === 0))
        .map(([key, [name, color]]) => ({
          name,
          color,
          ...parts[key],
          text: `${CLT.fixed(parts[key].value, 1)} (${CLT.percent(parts[key].value / parts.sum.value, 0)})`,
        }));
      return h(
        "div",
        {},
        h("h3", {}, `${title}: ${CLT.fixed(parts.sum.value, 1)}`),
        CLT.charts.bars({ items, label: `Parts of the ${target}`, nameWidth: 92 }),
      );
    };
    const out = [];
    if (logit)
      out.push(
        CLT.card(
          "Who makes the decision",
          {
            note: "What each part of the untouched model adds directly to the predicted class's logit, and to its margin over the runner-up: means over images, lines are 95 % intervals. Error: what the reconstruction leaves out.",
          },
          h(
            "div",
            { class: "halves" },
            bars("margin", "Margin to the runner-up"),
            bars("logit", "Logit of the predicted class"),
          ),
        ),
      );
    if (table) {
      const sets = Object.keys(table);
      const skip = sets.some((set) => Math.abs(table[set].mean - 1) > 1e-6);
      const layers = Array.from({ length: e.layers }, (_, l) => `L${l}`);
      out.push(
        CLT.card(
          "Features' share of the reconstruction",
          { note: skip ? "Of the centred reconstruction's variance; the rest is the linear skip's." : null },
          skip
            ? CLT.scroll(
                "Features' share by token set and layer",
                CLT.charts.heatmap({
                  rows: sets.map((set) => CLT.tokenName(set).replace(" tokens", "")),
                  columns: [...layers, "mean"],
                  values: sets.map((set) => [...table[set].layers, table[set].mean]),
                  scale: (v) => v,
                  show: (v) => CLT.percent(v, 0),
                  label: "Features' share of the centred reconstruction, by token set and layer",
                }),
              )
            : h("p", { style: { margin: 0 } }, "100 %: there is no linear skip, the sparse features carry everything."),
        ),
      );
    }
    return out;
  }

  async function clearestFeatures(list) {
    if (!list.length) return null;
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    return CLT.card(
      "The clearest features",
      {
        note: "The most monosemantic of those active on 20 images or more: where each image is strongest, the class that stands out, and the effect on the predicted class's logit.",
      },
      h(
        "div",
        { class: "tiles-features" },
        list.map(([l, f]) => CLT.featureTile(c, sprites, l * c.size + f)),
      ),
      h("p", { class: "more" }, h("a", { href: CLT.href("features") }, "All features")),
    );
  }

  const short = (names) => {
    // the part that all names share says nothing beside the title
    const parts = names.map((name) => name.split("/"));
    const common = names.length < 2 ? 0 : parts[0].findIndex((part, k) => parts.some((p) => p[k] !== part));
    return parts.map((p) => p.slice(Math.max(0, common < 0 ? p.length - 1 : common)).join("/") || p.at(-1));
  };
  const curves = (list) =>
    list.map(({ title, curves: found }) => {
      const names = short(found.map((curve) => curve.name));
      const series = found.map((curve, k) => ({ ...curve, name: names[k], marks: curve.x.length <= 12 }));
      return h(
        "div",
        {},
        h("h3", {}, title),
        CLT.charts.lines({ series, xLabel: "step", label: title, height: 220, yZero: true }),
      );
    });

  const record = (rows) =>
    h(
      "dl",
      { class: "record" },
      rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]),
    );
  const duration = (s) => {
    const [hours, minutes] = [Math.floor(s / 3600), Math.floor((s % 3600) / 60)];
    return hours
      ? `${hours} h ${minutes} min`
      : minutes
        ? `${minutes} min ${Math.round(s % 60)} s`
        : `${Math.round(s)} s`;
  };

  CLT.pages.summary = async () => {
    const [report, s] = await Promise.all([CLT.load("report"), CLT.load("summary")]);
    const e = report.evaluation;
    const trained = [
      s.steps ? `${CLT.count(s.steps)} steps` : "",
      s.seconds !== null ? `in ${duration(s.seconds)}` : "",
    ].filter(Boolean);
    const tiles = e
      ? [
          ...reconstruction(e),
          ...task(e, "zero_shot", "top1", "Zero-shot top-1"),
          ...task(e, "multilabel", "map", "mAP"),
          ...check(e),
        ]
      : [];
    const drawings = curves(s.curves);
    return [
      h("h1", {}, report.title),
      h("p", { class: "lead" }, report.lead, trained.length ? ` Trained ${trained.join(" ")}.` : ""),
      e ? h("div", { class: "tiles" }, tiles) : CLT.missing("summary", "This run was not evaluated yet"),
      report.notes.length
        ? h(
            "ul",
            { class: "note" },
            report.notes.map((n) => h("li", {}, n)),
          )
        : null,
      h(
        "div",
        { class: "stack" },
        e ? shares(e) : null,
        await clearestFeatures(s.clearest),
        drawings.length
          ? CLT.card(
              "Training",
              {
                note: trained.length
                  ? `${trained.join(" ")}, from the events of TensorBoard.`
                  : "From the events of TensorBoard.",
              },
              h("div", { class: "halves wide" }, drawings),
            )
          : null,
        h(
          "nav",
          { class: "doors", "aria-label": "What there is to see" },
          CLT.get("pages")
            .slice(1)
            .filter((page) => document.querySelector(`#nav [data-page="${page.name}"]`))
            .map((page) => h("a", { href: CLT.href(page.name) }, h("b", {}, page.title), h("span", {}, page.about))),
        ),
        s.changes
          ? CLT.card(
              "What this run sets",
              { note: "Every key of config.yaml that differs from its default." },
              CLT.scroll(
                "Changes to the defaults",
                CLT.table(
                  [
                    { name: "key", text: true },
                    { name: "this run", text: true },
                    { name: "default", text: true },
                  ],
                  s.changes.map(([key, usual, value]) => [
                    h("code", {}, key),
                    h("code", {}, value),
                    usual === null ? "" : h("code", {}, usual),
                  ]),
                  { sortable: false },
                ),
              ),
            )
          : null,
        CLT.card(
          "Record",
          {},
          h(
            "details",
            {},
            h("summary", {}, "Everything that was written down"),
            h(
              "div",
              { class: "masonry" },
              s.record.map(([title, rows]) => h("section", {}, h("h3", {}, title), record(rows))),
            ),
          ),
          s.config
            ? h("details", {}, h("summary", {}, "config.yaml"), CLT.scroll("config.yaml", h("pre", {}, s.config)))
            : null,
        ),
      ),
    ];
  };
})();
