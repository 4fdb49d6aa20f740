// `#/page/part/part?key=value` -> CLT.pages[page]. Every view has an address that can be sent around.
(() => {
  "use strict";
  const { h } = CLT;
  let turn = 0;

  CLT.href = (page, parts = [], query = {}) => {
    const words = new URLSearchParams(
      Object.entries(query).filter(([, v]) => v !== "" && v !== null && v !== undefined),
    ).toString();
    return `#/${[page, ...parts].map(encodeURIComponent).join("/")}${words ? `?${words}` : ""}`;
  };
  // changes the address without drawing anew: for choices inside a page
  CLT.remember = (page, parts, query) => history.replaceState(null, "", CLT.href(page, parts, query));
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

  async function show() {
    const mine = ++turn,
      { page, parts, query } = where(),
      main = document.getElementById("main");
    const section = CLT.page(page)?.under || page;
    for (const a of document.querySelectorAll("#nav a"))
      if (a.dataset.page === section) a.setAttribute("aria-current", "page");
      else a.removeAttribute("aria-current");
    const current = document.querySelector("#nav a[aria-current]");
    if (current)
      current.parentElement.scrollLeft =
        current.offsetLeft - current.parentElement.clientWidth / 2 + current.clientWidth / 2;
    const draw = CLT.page(page) && CLT.pages[page];
    let content;
    try {
      content = draw
        ? await draw(parts, query)
        : [h("h1", {}, "No such page"), CLT.empty(h("a", { href: "#/" }, "Back to the summary"))];
    } catch (error) {
      console.error(error);
      content = [h("h1", {}, "This page cannot be shown"), h("p", { class: "empty error" }, error.message)];
    }
    if (mine !== turn) return;
    main.replaceChildren(...[content].flat(Infinity).filter(Boolean));
    const title = main.querySelector("h1");
    document.title = `${title ? `${title.textContent} · ` : ""}${document.querySelector(".brand b").textContent}`;
    // what stands on every page of a kind: notes of a feature, the same one in another run
    window.dispatchEvent(new CustomEvent("pageshown", { detail: { page, parts, query } }));
    main.dataset.ready = page;
    window.scrollTo(0, 0);
    if (mine > 1) {
      main.focus({ preventScroll: true });
      CLT.say(title ? title.textContent : "");
    }
  }

  CLT.start = () => {
    window.addEventListener("hashchange", show);
    show();
  };
})();
