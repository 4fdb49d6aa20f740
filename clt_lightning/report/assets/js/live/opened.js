// Where the image at work comes from: dropped, chosen, pasted, picked from the stored ones, or named by its key.
(() => {
  "use strict";
  const { h } = CLT;
  const PAGE = matchMedia("(max-width: 720px)").matches ? 10 : 24;

  // `take(file)` and `pick(key)` open one; `problem(error)` says what went wrong
  CLT.live.zone = ({ take, problem }) => {
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
    let shown = false;
    const paste = (e) => {
      shown ||= zone.isConnected;
      if (shown && !zone.isConnected) window.removeEventListener("paste", paste);
      else if (e.clipboardData?.files[0]) take(e.clipboardData.files[0]);
    };
    window.addEventListener("paste", paste);
    return zone;
  };

  // the image itself, and where it is studied
  CLT.live.shown = (about, opened) => [
    h("img", { src: opened.picture, alt: opened.name }),
    h(
      "div",
      {},
      h("b", { class: "cut" }, opened.name),
      opened.label >= 0 ? h("span", {}, `labelled ${about.classnames[opened.label]}`) : null,
      h(
        "a",
        { href: CLT.href("own", [opened.image], opened.key ? { key: opened.key } : {}) },
        "Its page: features and logit →",
      ),
    ),
  ];

  CLT.live.picker = ({ about, pick, problem }) => {
    let from = 0;
    const grid = h("div", { class: "shots small picks" });
    async function draw() {
      const numbers = about.stored.map((_, n) => n).slice(from, from + PAGE);
      const { pictures } = await CLT.live.ask("thumbnails", { images: numbers });
      grid.replaceChildren(
        ...numbers.map((n, at) => {
          const [key, label] = about.stored[n];
          const what = label >= 0 ? `, ${about.classnames[label]}` : "";
          return h(
            "button",
            { type: "button", class: "pick", title: key, "aria-label": `Take ${key}${what}`, onclick: () => pick(key) },
            h("img", { src: pictures[at], alt: "" }),
          );
        }),
      );
    }
    const others = () => {
      from = from + PAGE >= about.stored.length ? 0 : from + PAGE;
      draw().catch(problem);
    };
    const byKey = (e) => {
      e.preventDefault();
      const key = e.target.elements.key.value.trim();
      if (key) pick(key);
    };
    if (about.stored.length) draw().catch(problem);
    return h(
      "section",
      { class: "card" },
      h(
        "header",
        {},
        h("h2", {}, "Or pick one"),
        about.stored.length > PAGE ? h("button", { type: "button", class: "plain", onclick: others }, "others") : null,
      ),
      grid,
      h(
        "form",
        { class: "row", onsubmit: byKey },
        h("input", {
          type: "search",
          name: "key",
          placeholder: "or an image's key",
          "aria-label": `Key of an image of the ${about.split} split`,
        }),
        h("button", { type: "submit", class: "plain" }, "Take"),
      ),
    );
  };
})();
