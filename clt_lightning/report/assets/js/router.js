// `#/page/part/part?key=value` -> CLT.pages[page]. Every view has an address that can be sent around.
(() => {
  "use strict";
  const { h } = CLT;
  const PATIENCE = 1500; // ms until a page is as long as it was when the reader left it
  let turn = 0;

  CLT.href = (page, parts = [], query = {}) => {
    const words = new URLSearchParams(
      Object.entries(query).filter(([, v]) => v !== "" && v !== null && v !== undefined),
    ).toString();
    return `#/${[page, ...parts].map(encodeURIComponent).join("/")}${words ? `?${words}` : ""}`;
  };
  // changes the address without drawing anew: for choices inside a page, unless the reader has left it
  CLT.remember = (page, parts, query) => {
    if (where().page === page) history.replaceState(history.state, "", CLT.href(page, parts, query));
  };
  CLT.go = (page, parts, query) => {
    location.hash = CLT.href(page, parts, query);
  };

  // an address may be typed by hand: what is no encoding stands for itself
  function decoded(part) {
    try {
      return decodeURIComponent(part);
    } catch (_) {
      return part;
    }
  }
  function where() {
    const address = location.hash.replace(/^#\/?/, "");
    const cut = address.indexOf("?");
    const path = cut < 0 ? address : address.slice(0, cut);
    const [page, ...parts] = path.split("/").map(decoded);
    const query = Object.fromEntries(new URLSearchParams(cut < 0 ? "" : address.slice(cut + 1)));
    return { page: page || CLT.get("pages")[0].name, parts, query };
  }

  CLT.where = where;

  // Where the reader was on a page, by its entry in the history: how far it and its boxes were scrolled, and the link
  // that led on.
  const places = new Map();
  let here = null;
  let leaving = null;
  function note() {
    if (here === null) return;
    const boxes = [...document.querySelectorAll("[data-scroll]")].map((box) => [box.dataset.scroll, box.scrollTop]);
    places.set(here, { top: window.scrollY, boxes: Object.fromEntries(boxes), link: leaving });
  }
  addEventListener("scroll", () => note(), { capture: true, passive: true });
  addEventListener("click", (event) => {
    leaving = event.target.closest?.("a[href^='#']")?.getAttribute("href") ?? null;
    note();
  });
  function settle(place) {
    const began = performance.now();
    const mine = turn;
    const step = () => {
      if (mine !== turn) return;
      let there = true;
      for (const box of document.querySelectorAll("[data-scroll]")) {
        const wanted = place.boxes[box.dataset.scroll] || 0;
        if (box.scrollTop !== wanted) box.scrollTop = wanted;
        there &&= Math.abs(box.scrollTop - wanted) < 2;
      }
      window.scrollTo(0, place.top);
      there &&= Math.abs(window.scrollY - place.top) < 2;
      if (!there && performance.now() - began < PATIENCE) requestAnimationFrame(step);
      else if (place.link) {
        const link = [...document.querySelectorAll("main a")].find((a) => a.getAttribute("href") === place.link);
        link?.focus({ preventScroll: true });
      }
    };
    requestAnimationFrame(step);
  }

  function mark(section) {
    for (const a of document.querySelectorAll("#nav a"))
      if (a.dataset.page === section) a.setAttribute("aria-current", "page");
      else a.removeAttribute("aria-current");
  }

  async function content({ page, parts, query }) {
    const draw = CLT.page(page) && CLT.pages[page];
    if (!draw) return [h("h1", {}, "No such page"), CLT.empty(h("a", { href: "#/" }, "Back to the summary"))];
    try {
      return await draw(parts, query);
    } catch (error) {
      if (error instanceof CLT.Nowhere)
        return [
          h("h1", {}, "Nothing here"),
          CLT.empty(error.message, " ", h("a", { href: "#/" }, "Back to the summary")),
        ];
      console.error(error);
      return [h("h1", {}, "This page cannot be shown"), h("p", { class: "empty error" }, error.message)];
    }
  }

  async function show() {
    const mine = ++turn;
    const asked = where();
    const main = document.getElementById("main");
    here = null; // what scrolls now is neither the old page nor the new one
    mark(CLT.page(asked.page)?.under || asked.page);
    document.getElementById("menu").setAttribute("aria-expanded", "false");
    const drawn = await content(asked);
    if (mine !== turn) return;
    main.replaceChildren(...[drawn].flat(Infinity).filter(Boolean));
    const title = main.querySelector("h1");
    document.title = `${title ? `${title.textContent} · ` : ""}${document.querySelector(".brand b").textContent}`;
    const known = history.state?.place;
    here = known ?? Math.random();
    if (known === undefined) history.replaceState({ place: here }, "");
    const place = places.get(here);
    // what stands on every page of a kind: notes of a feature, the same one in another run
    window.dispatchEvent(new CustomEvent("pageshown", { detail: asked }));
    if (mine > 1) {
      main.focus({ preventScroll: true });
      CLT.say(title ? title.textContent : "");
    }
    if (place) settle(place);
    else window.scrollTo(0, 0);
    main.dataset.ready = asked.page;
  }

  CLT.start = () => {
    history.scrollRestoration = "manual";
    const menu = document.getElementById("menu");
    menu.addEventListener("click", () =>
      menu.setAttribute("aria-expanded", String(menu.getAttribute("aria-expanded") !== "true")),
    );
    // a link of the report's own, such as "Skip to content", is no page
    window.addEventListener("hashchange", () => (location.hash === "#main" ? null : show()));
    show();
  };
})();
