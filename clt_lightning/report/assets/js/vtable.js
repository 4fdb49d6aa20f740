// A table of any length: only the rows on the screen exist.
(() => {
  "use strict";
  const { h } = CLT;
  const ROW = 56,
    AHEAD = 6;
  // columns: [{key, name, width, number?, hideSmall?, value(i), cell(i), text?}]; `href(i)`: where a row leads
  CLT.vtable = ({ columns, href, label, sort, onsort }) => {
    const narrow = matchMedia("(max-width: 720px)");
    const space = h("div", { class: "vspace", role: "rowgroup" }),
      head = h("div", { class: "vhead", role: "row" });
    const box = h(
      "div",
      { class: "vtable", role: "table", "aria-label": label, tabindex: 0 },
      h("div", { role: "rowgroup", style: { display: "contents" } }, head),
      space,
    );
    let order = [],
      from = -1,
      to = -1;
    const shown = () => columns.filter((c) => !(c.hideSmall && narrow.matches));
    function heads() {
      box.style.setProperty(
        "--cols",
        shown()
          .map((c) => c.width)
          .join(" "),
      );
      box.style.setProperty("--minw", narrow.matches ? "0" : "820px");
      head.replaceChildren(
        ...shown().map((c) =>
          h(
            "div",
            {
              role: "columnheader",
              class: c.number ? "n" : null,
              "aria-sort": sort.key === c.key ? (sort.down ? "descending" : "ascending") : null,
            },
            c.value
              ? h(
                  "button",
                  {
                    type: "button",
                    title: c.help || c.name,
                    "data-key": c.key,
                    onclick: () => {
                      sort = { key: c.key, down: sort.key === c.key ? !sort.down : Boolean(c.number) };
                      heads();
                      onsort(sort);
                    },
                  },
                  c.name,
                )
              : c.name,
          ),
        ),
      );
    }
    function rows() {
      const top = Math.max(0, Math.floor(box.scrollTop / ROW) - AHEAD),
        end = Math.min(order.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + AHEAD);
      if (top === from && end === to) return;
      const kept = new Map([...space.children].map((n) => [n.dataset.n, n])),
        next = [];
      for (let n = top; n < end; n++) {
        const key = `${n}:${order[n]}`;
        next.push(
          kept.get(key) ||
            h(
              "a",
              {
                class: "vrow",
                role: "row",
                "aria-rowindex": n + 2,
                "data-n": key,
                href: href(order[n]),
                style: { top: `${n * ROW}px` },
              },
              shown().map((c) =>
                h("span", { role: "cell", class: `${c.number ? "n" : ""} ${c.cls || ""}` }, c.cell(order[n])),
              ),
            ),
        );
      }
      [from, to] = [top, end];
      if (next.some((n, i) => space.children[i] !== n) || space.children.length !== next.length)
        space.replaceChildren(...next);
    }
    box.addEventListener("scroll", rows, { passive: true });
    new ResizeObserver(() => {
      from = -1;
      rows();
    }).observe(box);
    narrow.addEventListener("change", () => {
      heads();
      from = -1;
      space.replaceChildren();
      rows();
    });
    box.show = (list) => {
      order = list;
      space.style.height = `${list.length * ROW}px`;
      box.setAttribute("aria-rowcount", list.length + 1);
      box.scrollTop = 0;
      from = -1;
      space.replaceChildren();
      rows();
    };
    heads();
    return box;
  };
})();
