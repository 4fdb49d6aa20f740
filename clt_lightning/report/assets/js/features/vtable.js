// A table of any length: only the rows on the screen exist.
(() => {
  "use strict";
  const { h } = CLT;
  const ROW = 52;
  const AHEAD = 6;
  // columns: [{key, name, width, cell(i), number?, sortable?, hideSmall?, help?, hidden?: a name for screen readers}]
  // href(i): where a row leads; the cell of the column `id` is its link
  CLT.vtable = ({ columns, href, label, sort, onsort }) => {
    const narrow = matchMedia("(max-width: 720px)");
    const space = h("div", { class: "vspace", role: "rowgroup" });
    const head = h("div", { class: "vhead", role: "row", "aria-rowindex": 1 });
    const box = h(
      "div",
      { class: "vtable", role: "table", "aria-label": label, tabindex: 0, "data-scroll": "table" },
      h("div", { role: "rowgroup", style: { display: "contents" } }, head),
      space,
    );
    let order = [];
    let drawn = "";
    const shown = () => columns.filter((c) => !(c.hideSmall && narrow.matches));
    function heads() {
      const now = shown();
      const least = now.reduce((sum, c) => sum + Number(/\d+/.exec(c.width)[0]) + 8, 20);
      box.style.setProperty("--cols", now.map((c) => c.width).join(" "));
      box.style.setProperty("--minw", narrow.matches ? "0" : `${least}px`);
      head.replaceChildren(
        ...now.map((c) => {
          const direction = sort.key === c.key ? (sort.down ? "descending" : "ascending") : null;
          const turn = () => onsort({ key: c.key, down: sort.key === c.key ? !sort.down : Boolean(c.number) });
          const name = c.sortable
            ? h("button", { type: "button", title: c.help || c.name, "data-key": c.key, onclick: turn }, c.name)
            : h("span", { class: "sr" }, c.hidden);
          return h("div", { role: "columnheader", class: c.number ? "n" : null, "aria-sort": direction }, name);
        }),
      );
    }
    function row(n) {
      const i = order[n];
      const cells = shown().map((c) =>
        h(
          "span",
          { role: "cell", class: `${c.number ? "n" : ""} ${c.cls || ""}` },
          c.key === "id" ? h("a", { href: href(i) }, c.cell(i)) : c.cell(i),
        ),
      );
      return h("div", { class: "vrow", role: "row", "aria-rowindex": n + 2, style: { top: `${n * ROW}px` } }, cells);
    }
    function rows() {
      const top = Math.max(0, Math.floor(box.scrollTop / ROW) - AHEAD);
      const end = Math.min(order.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + AHEAD);
      if (drawn === `${top} ${end}`) return;
      drawn = `${top} ${end}`;
      const kept = new Map([...space.children].map((node) => [node.dataset.n, node]));
      const next = [];
      for (let n = top; n < end; n++) {
        const name = `${n}:${order[n]}`;
        const node = kept.get(name) || row(n);
        node.dataset.n = name;
        next.push(node);
      }
      if (next.length !== space.children.length || next.some((node, k) => space.children[k] !== node))
        space.replaceChildren(...next);
    }
    box.addEventListener("scroll", rows, { passive: true });
    new ResizeObserver(() => {
      drawn = "";
      rows();
    }).observe(box);
    narrow.addEventListener("change", () => {
      heads();
      drawn = "";
      space.replaceChildren();
      rows();
    });
    box.show = (list, newSort) => {
      order = list;
      sort = newSort;
      heads();
      space.style.height = `${list.length * ROW}px`;
      box.setAttribute("aria-rowcount", list.length + 1);
      box.scrollTop = 0;
      drawn = "";
      space.replaceChildren();
      rows();
    };
    heads();
    return box;
  };
})();
