// A figure: title, what it shows, the drawing, its numbers as a table on request, and files to take away.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.downloads = (files) =>
    files?.length
      ? h(
          "span",
          { class: "downloads" },
          files.map((f) =>
            h("a", { href: f, download: true, "aria-label": `Download ${f}` }, f.split(".").pop().toUpperCase()),
          ),
        )
      : null;
  // a box that may be wider than the screen
  CLT.scroll = (label, ...children) => h("div", { class: "scroll", "data-label": label }, children);
  // every such box is the keyboard's to scroll, too, for as long as it is wider than its place
  const check = (box) => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    const label = box.dataset.label || box.closest(".card")?.querySelector("h2, h3")?.textContent || "Table";
    for (const [name, value] of Object.entries({ tabindex: 0, role: "region", "aria-label": label }))
      if (wide) box.setAttribute(name, value);
      else box.removeAttribute(name);
  };
  const watched = new ResizeObserver((entries) => {
    for (const entry of entries) check(entry.target.closest(".scroll") || entry.target);
  });
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes)
        if (node.nodeType === Node.ELEMENT_NODE)
          for (const box of [node, ...node.querySelectorAll(".scroll")])
            if (box.matches(".scroll")) for (const part of [box, ...box.children]) watched.observe(part);
  }).observe(document.getElementById("main"), { childList: true, subtree: true });
  // a card with a heading; level 2 under the page's own, 3 inside a part with a heading of its own
  CLT.card = (title, { note, tools, level = 2, cls = "", files } = {}, ...body) =>
    h(
      "section",
      { class: `card ${cls}` },
      title && h("header", {}, h(`h${level}`, {}, title), CLT.downloads(files)),
      note && h("p", { class: "note" }, note),
      tools && h("div", { class: "tools" }, tools),
      body,
    );
  CLT.figure = ({ title, note, files, tools, body, numbers, cls, level }) =>
    CLT.card(
      title,
      { note, files, tools, cls, level },
      body,
      numbers && h("details", {}, h("summary", {}, "Numbers"), CLT.scroll(`Numbers of ${title}`, numbers)),
    );
  CLT.empty = (...text) => h("p", { class: "empty" }, text);
  // a page without its data: what is missing, and the command that makes it
  CLT.missing = (page, what) => CLT.empty(`${what}. This makes it: `, h("code", {}, CLT.page(page).needs));

  // one of several choices; `onpick(value)` is called with the new one
  CLT.segments = (label, choices, current, onpick) => {
    const box = h("div", { class: "seg", role: "group", "aria-label": label });
    for (const [value, text] of choices) {
      box.append(
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(value === current),
            onclick: (e) => {
              for (const b of box.children) b.setAttribute("aria-pressed", String(b === e.currentTarget));
              onpick(value);
            },
          },
          text,
        ),
      );
    }
    return box;
  };
  CLT.select = (label, choices, current, onpick) =>
    h(
      "label",
      {},
      label,
      h(
        "select",
        { onchange: (e) => onpick(e.target.value) },
        choices.map(([v, t]) => h("option", { value: v, selected: String(v) === String(current) }, t)),
      ),
    );

  // rows: arrays of cells; a cell is text, a node, or {v: sort value, t: text}. A click on a heading sorts.
  CLT.table = (heads, rows, { strong, sortable = true, cls = "" } = {}) => {
    const body = h("tbody");
    const value = (c) => (c && typeof c === "object" && "v" in c ? c.v : c);
    const text = (c) => (c && typeof c === "object" && "t" in c ? c.t : c);
    const draw = (list) =>
      body.replaceChildren(
        ...list.map((row) =>
          h(
            "tr",
            { class: strong?.(row) ? "strong" : null },
            row.map((c, i) =>
              i ? h("td", { class: heads[i].text ? "t" : null }, text(c)) : h("th", { scope: "row" }, text(c)),
            ),
          ),
        ),
      );
    const ths = heads.map((head, i) => {
      const name = head.name ?? head;
      return h(
        "th",
        { scope: "col", class: head.text ? "t" : null },
        sortable
          ? h(
              "button",
              {
                type: "button",
                class: "sort",
                onclick: () => {
                  const down = ths[i].getAttribute("aria-sort") !== "descending";
                  for (const th of ths) th.removeAttribute("aria-sort");
                  ths[i].setAttribute("aria-sort", down ? "descending" : "ascending");
                  const sign = down ? -1 : 1;
                  draw([...rows].sort((a, b) => sign * CLT.compare(value(a[i]), value(b[i]))));
                },
              },
              name,
            )
          : name,
      );
    });
    draw(rows);
    return h("table", { class: `plain ${cls}` }, h("thead", {}, h("tr", {}, ths)), body);
  };
  // what was not measured is smaller than everything
  CLT.compare = (a, b) => {
    const missing = (v) => v === null || v === undefined || v === "" || Number.isNaN(v);
    if (missing(a) || missing(b)) return Number(missing(b)) - Number(missing(a));
    return typeof a === "string" ? a.localeCompare(b) : a - b;
  };
})();
