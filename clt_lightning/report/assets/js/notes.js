// What the reader has noted of features: kept in the browser for this run's weights, over what `report --notes` has read.
// Exported and imported as JSON; clt_lightning/report/notes.py reads the same form and checks the same things.
(() => {
  "use strict";
  const { h } = CLT;
  const SCHEMA = 1;
  const LONGEST = { label: 80, comment: 4000 };
  const { title, started, step } = CLT.get("runs").runs[CLT.get("runs").current];
  const PLACE = `clt-notes:${started || title}:${step}`;
  const given = CLT.get("notes") || {};
  let mine = {};
  let kept = true;

  function read() {
    try {
      const found = JSON.parse(localStorage.getItem(PLACE) || "{}");
      mine = found && typeof found === "object" && !Array.isArray(found) ? found : {};
    } catch (_) {
      kept = false; // private mode, or a browser that keeps nothing: for this visit then
    }
  }
  function keep() {
    try {
      localStorage.setItem(PLACE, JSON.stringify(mine));
    } catch (_) {
      kept = false;
    }
    window.dispatchEvent(new CustomEvent("noteschange"));
  }
  read();
  window.addEventListener("storage", (e) => {
    if (e.key !== PLACE) return;
    read();
    window.dispatchEvent(new CustomEvent("noteschange"));
  });

  const key = (layer, feature) => `${layer}/${feature}`;
  const empty = (note) => !note || !(note.star || note.label || note.comment);

  CLT.notes = {
    of: (layer, feature) => mine[key(layer, feature)] || given[key(layer, feature)] || {},
    change(layer, feature, part) {
      const k = key(layer, feature);
      const note = { ...CLT.notes.of(layer, feature), ...part };
      for (const field of Object.keys(note)) if (!note[field]) delete note[field];
      // an empty note hides the one that the report came with
      if (empty(note) && !given[k]) delete mine[k];
      else mine[k] = note;
      keep();
    },
    // [layer, feature, note] of all that are noted, in order
    all: () =>
      Object.entries({ ...given, ...mine })
        .filter(([, note]) => !empty(note))
        .map(([k, note]) => [...k.split("/").map(Number), note])
        .sort((a, b) => a[0] - b[0] || a[1] - b[1]),
    // the name that a person gave, marked as such; null without
    name(layer, feature) {
      const { label } = CLT.notes.of(layer, feature);
      return label
        ? h(
            "span",
            { class: "person", title: "A name that a person gave" },
            h("span", { "aria-hidden": "true" }, "✎ "),
            label,
          )
        : null;
    },
    kept: () => kept,
    text: () =>
      JSON.stringify(
        {
          clt_notes: SCHEMA,
          run: { title, started, step },
          features: Object.fromEntries(CLT.notes.all().map(([l, f, note]) => [key(l, f), note])),
        },
        null,
        1,
      ),
    // takes a file's text; throws with the key that is wrong
    take(text, layers, features) {
      let content;
      try {
        content = JSON.parse(text);
      } catch (error) {
        throw new Error(`This is not JSON: ${error.message}`);
      }
      const table = (v) => v && typeof v === "object" && !Array.isArray(v);
      if (!table(content) || content.clt_notes !== SCHEMA)
        throw new Error(`clt_notes: expected ${SCHEMA}, as the export has it. Is this a file of notes?`);
      if (content.run !== null && content.run !== undefined) {
        if (!table(content.run)) throw new Error("run: expected title, started and step");
        if ((content.run.started ?? null) !== (started ?? null) || (content.run.step ?? null) !== (step ?? null))
          throw new Error(
            `run: these notes are of ${content.run.title || "another run"}, step ${content.run.step}; this is ${title}, step ${step}. The features of other weights are others.`,
          );
      }
      if (!table(content.features)) throw new Error("features: expected notes by <layer>/<feature>");
      for (const [k, note] of Object.entries(content.features)) {
        const found = k.match(/^(0|[1-9]\d{0,8})\/(0|[1-9]\d{0,8})$/);
        if (!found) throw new Error(`features.${k}: expected <layer>/<feature>, such as 3/120`);
        if (layers && (Number(found[1]) >= layers || Number(found[2]) >= features))
          throw new Error(`features.${k}: layers go to ${layers - 1}, features to ${features - 1}`);
        if (!table(note)) throw new Error(`features.${k}: expected star, label, comment`);
        for (const [field, value] of Object.entries(note)) {
          if (!["star", "label", "comment"].includes(field))
            throw new Error(`features.${k}.${field}: is not known here`);
          if (typeof value !== (field === "star" ? "boolean" : "string"))
            throw new Error(`features.${k}.${field}: expected ${field === "star" ? "true or false" : "a text"}`);
          if (field !== "star" && value.length > LONGEST[field])
            throw new Error(`features.${k}.${field}: at most ${LONGEST[field]} letters fit`);
        }
      }
      const entries = Object.entries(content.features);
      for (const [k, note] of entries) {
        const parts = Object.entries(note).map(([field, v]) => [field, typeof v === "string" ? v.trim() : v]);
        const there = Object.fromEntries(parts.filter(([, v]) => v));
        if (!empty(there)) mine[k] = { ...CLT.notes.of(...k.split("/")), ...there };
      }
      keep();
      return entries.length;
    },
  };

  // star, name and comment of one feature
  CLT.notes.bar = (layer, feature) => {
    const note = CLT.notes.of(layer, feature);
    const star = h(
      "button",
      {
        type: "button",
        class: "star",
        "aria-pressed": String(Boolean(note.star)),
        "aria-label": "Star this feature",
        title: "Star this feature",
        onclick: (e) => {
          const on = e.currentTarget.getAttribute("aria-pressed") !== "true";
          e.currentTarget.setAttribute("aria-pressed", String(on));
          CLT.notes.change(layer, feature, { star: on });
        },
      },
      CLT.svg(
        "svg",
        { viewBox: "0 0 24 24", width: 20, height: 20, "aria-hidden": "true" },
        CLT.svg("path", { d: "m12 3 2.7 5.8 6.3.8-4.6 4.4 1.2 6.2L12 17.1l-5.6 3.1 1.2-6.2L3 9.6l6.3-.8Z" }),
      ),
    );
    let timer = null;
    const later = (part) => {
      clearTimeout(timer);
      timer = setTimeout(() => CLT.notes.change(layer, feature, part()), 250);
    };
    const label = h("input", {
      type: "text",
      class: "named",
      maxlength: LONGEST.label,
      placeholder: "Your name for it",
      "aria-label": "Your name for this feature",
      value: note.label || "",
      oninput: () => later(parts),
      onchange: () => CLT.notes.change(layer, feature, parts()),
    });
    const comment = h("textarea", {
      rows: 3,
      maxlength: LONGEST.comment,
      placeholder: "What you saw",
      "aria-label": "Comment on this feature",
      oninput: () => later(parts),
      onchange: () => CLT.notes.change(layer, feature, parts()),
    });
    comment.value = note.comment || "";
    const parts = () => ({ label: label.value.trim(), comment: comment.value.trim() });
    return h(
      "div",
      { class: "notebar" },
      star,
      label,
      h("details", { open: Boolean(note.comment) }, h("summary", {}, "Comment"), comment),
      h("a", { href: CLT.href("notes") }, "all notes"),
    );
  };

  window.addEventListener("pageshown", ({ detail: { page, parts } }) => {
    if (page !== "feature") return;
    const head = document.querySelector("main h1");
    const features = CLT.get("features");
    const [layer, feature] = parts.map(Number);
    if (!head || !features || !(layer < features.layers && feature < features.features)) return;
    (head.closest("main > *") || head).after(CLT.notes.bar(layer, feature));
  });
})();
