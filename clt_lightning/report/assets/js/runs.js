// Several runs in one folder: a switch to the same page of another one, and which of its features is this one.
(() => {
  "use strict";
  const { h } = CLT;
  const { runs, current } = CLT.get("runs");
  const STATES = ["dead", "kept", "split", "new"];

  // puts a page that is not always there into the navigation, in the list's order
  CLT.navigation = (name) => {
    const nav = document.getElementById("nav"),
      pages = CLT.get("pages"),
      at = pages.findIndex((page) => page.name === name);
    if (nav.querySelector(`[data-page="${name}"]`)) return;
    const next = pages
      .slice(at + 1)
      .map((page) => nav.querySelector(`[data-page="${page.name}"]`))
      .find(Boolean);
    nav.insertBefore(h("a", { href: `#/${name}`, "data-page": name }, pages[at].title), next || null);
  };

  // what a feature has in another run: {run, title, href, state, layer, feature, decoder, encoder}; null where nothing was matched
  CLT.partner = async (other, layer, feature) => {
    const found = (await CLT.load("compare"))?.matches.find(
      (m) => (m.a === current && m.b === other) || (m.b === current && m.a === other),
    );
    if (!found || found.said) return null;
    const match = await CLT.load(`match/${other}_${String(layer).padStart(2, "0")}`);
    const partner = match.partner[feature];
    return {
      title: runs[other].title,
      href: partner < 0 ? null : `${runs[other].href}${CLT.href("feature", [layer, partner])}`,
      state: STATES[match.state[feature]],
      layer,
      feature: partner,
      decoder: match.decoder[feature],
      encoder: match.encoder[feature],
    };
  };

  if (runs.length < 2) return;
  CLT.navigation("compare");
  CLT.navigation("stability");

  async function go(other) {
    const { page, parts } = CLT.where();
    let hash = location.hash;
    if (page === "feature") {
      const partner = await CLT.partner(other, ...parts.map(Number)).catch(() => null);
      const same = partner?.href && (partner.state === "kept" || partner.state === "split");
      hash = same
        ? CLT.href("feature", [partner.layer, partner.feature])
        : CLT.href("features", [], { layer: parts[0] });
    }
    location.href = `${runs[other].href}${hash}`;
  }
  const select = h(
    "select",
    { id: "runs", "aria-label": "Run", onchange: (e) => go(Number(e.target.value)) },
    runs.map((run, n) => h("option", { value: n, selected: n === current }, run.title)),
  );
  document.querySelector("header.top").insertBefore(select, document.getElementById("theme"));
  // the way back brings a page as it was left, with the other run chosen
  window.addEventListener("pageshow", () => {
    select.value = current;
  });

  const words = {
    kept: "is",
    split: "is near to",
    new: "has nothing like it; nearest:",
  };
  window.addEventListener("pageshown", async ({ detail: { page, parts } }) => {
    if (page !== "feature") return;
    const [layer, feature] = parts.map(Number);
    const head = document.querySelector("main h1");
    const lines = [];
    for (const other of runs.keys()) {
      if (other === current) continue;
      const partner = await CLT.partner(other, layer, feature).catch(() => null);
      if (!partner || partner.state === "dead" || !partner.href) continue;
      const there = h("a", { href: partner.href }, `L${partner.layer} · ${partner.feature}`);
      const cosines = ` (cosine of what they write ${CLT.fixed(partner.decoder, 2)}, of what they read ${CLT.fixed(partner.encoder, 2)})`;
      lines.push(
        h(
          "li",
          {},
          h("span", { class: `pill ${partner.state === "kept" ? "good" : ""}` }, partner.state),
          partner.state === "new"
            ? [` ${partner.title} ${words.new} `, there, cosines]
            : [" In ", partner.title, " it ", words[partner.state], " ", there, cosines],
        ),
      );
    }
    if (lines.length && head?.isConnected)
      (head.closest("main > *") || head).after(h("ul", { class: "partners note" }, lines));
  });
})();
