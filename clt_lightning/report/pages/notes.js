// All features that were starred, named or commented on; out into a file, and in from one.
(() => {
  "use strict";
  const { h } = CLT;

  function save(text, name) {
    const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const link = h("a", { href: address, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  CLT.pages.notes = async () => {
    const [c, sprites] = await Promise.all([CLT.catalogue(), CLT.load("sprites")]);
    const meta = CLT.get("features");
    const { runs, current } = CLT.get("runs");
    const list = h("div", {});
    const said = h("p", { class: "note", role: "status" });
    let starred = false;

    function row([layer, feature, note]) {
      return h(
        "li",
        { class: "noted" },
        h(
          "a",
          {
            href: CLT.href("feature", [layer, feature]),
            class: "shot",
            "aria-label": `Layer ${layer}, feature ${feature}`,
          },
          CLT.strongest(c, sprites, layer, feature),
        ),
        h(
          "div",
          {},
          h(
            "div",
            { class: "row" },
            note.star ? h("span", { class: "starred", role: "img", "aria-label": "starred" }, "★") : null,
            h("a", { href: CLT.href("feature", [layer, feature]) }, `L${layer} · ${feature}`),
            CLT.notes.name(layer, feature),
          ),
          note.comment ? h("p", {}, note.comment) : null,
        ),
        h(
          "button",
          {
            type: "button",
            class: "plain",
            "aria-label": `Forget the notes of layer ${layer}, feature ${feature}`,
            onclick: () => CLT.notes.change(layer, feature, { star: false, label: "", comment: "" }),
          },
          "Forget",
        ),
      );
    }
    function draw() {
      const all = CLT.notes.all().filter(([, , note]) => !starred || note.star);
      list.replaceChildren(
        all.length
          ? h("ul", { class: "notelist" }, all.map(row))
          : CLT.empty(
              starred
                ? "No feature is starred."
                : "Nothing was noted yet: a feature's card has a star, a name and a comment.",
            ),
      );
      if (!CLT.notes.kept())
        said.textContent = "This browser keeps nothing: export the notes before you close the page.";
    }
    const changed = () => {
      if (!list.isConnected) window.removeEventListener("noteschange", changed);
      else draw();
    };
    draw();
    setTimeout(() => window.addEventListener("noteschange", changed));
    const file = h("input", {
      type: "file",
      accept: ".json,application/json",
      class: "sr",
      id: "notesfile",
      "aria-label": "File of notes",
      tabindex: -1,
      onchange: async (e) => {
        const [chosen] = e.target.files;
        e.target.value = "";
        if (!chosen) return;
        try {
          const n = CLT.notes.take(await chosen.text(), meta?.layers, meta?.features);
          said.textContent = `${n} features taken from ${chosen.name}.`;
        } catch (error) {
          said.textContent = `${chosen.name}: ${error.message}`;
        }
        draw();
      },
    });
    const name = `notes-${runs[current].title.replace(/[^\w.-]+/g, "-")}.json`;
    return [
      h("h1", {}, "Notes"),
      h(
        "p",
        { class: "lead" },
        "Features that you starred, named or commented on. They are kept in this browser, for this run's weights. Exported, they go along: ",
        h("code", {}, `report --notes ${name}`),
        " shows the names to everybody.",
      ),
      h(
        "div",
        { class: "tools" },
        CLT.segments(
          "Which",
          [
            [false, "all"],
            [true, "starred"],
          ],
          starred,
          (v) => {
            starred = v;
            draw();
          },
        ),
        h(
          "button",
          { type: "button", class: "plain", id: "export", onclick: () => save(CLT.notes.text(), name) },
          "Export",
        ),
        h("button", { type: "button", class: "plain", onclick: () => file.click() }, "Import …"),
        file,
      ),
      said,
      list,
    ];
  };
})();
