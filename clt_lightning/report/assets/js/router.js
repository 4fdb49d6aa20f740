// `#/page/part/part?key=value` -> CLT.pages[page]. Every view has an address that can be sent around.
(function () {
  "use strict";
  const { h } = CLT;
  const NAV = [["", "Summary"], ["reconstruction", "Reconstruction"], ["cascade", "Replacement"], ["contributions", "Contributions"], ["faithfulness", "Faithfulness"],
    ["population", "Generalisation"], ["features", "Features"], ["images", "Images"], ["retrieval", "Retrieval"]];
  const parentOf = { feature: "features", image: "images", query: "retrieval" };
  let turn = 0;

  CLT.href = (page, parts = [], query = {}) => {
    const words = new URLSearchParams(Object.entries(query).filter(([, v]) => v !== "" && v !== null && v !== undefined)).toString();
    return `#/${[page, ...parts].map(encodeURIComponent).join("/")}${words ? `?${words}` : ""}`;
  };
  // changes the address without drawing anew: for choices inside a page
  CLT.remember = (page, parts, query) => history.replaceState(null, "", CLT.href(page, parts, query));
  CLT.go = (page, parts, query) => { location.hash = CLT.href(page, parts, query); };

  function where() {
    const [path, words] = location.hash.replace(/^#\/?/, "").split("?");
    const [page, ...parts] = path.split("/").map(decodeURIComponent);
    return { page: page || "", parts, query: Object.fromEntries(new URLSearchParams(words || "")) };
  }

  async function show() {
    const mine = ++turn, { page, parts, query } = where(), main = document.getElementById("main");
    const section = parentOf[page] || page;
    for (const a of document.querySelectorAll("#nav a")) a.dataset.page === section ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current");
    const current = document.querySelector("#nav a[aria-current]");
    if (current) current.parentElement.scrollLeft = current.offsetLeft - current.parentElement.clientWidth / 2 + current.clientWidth / 2;
    const draw = CLT.pages[page || "summary"];
    let content;
    try {
      content = draw ? await draw(parts, query) : [h("h1", {}, "No such page"), CLT.empty(h("a", { href: "#/" }, "Back to the summary"))];
    } catch (error) {
      console.error(error);
      content = [h("h1", {}, "This page cannot be shown"), h("p", { class: "empty error" }, error.message)];
    }
    if (mine !== turn) return;
    main.replaceChildren(...[content].flat(Infinity).filter(Boolean));
    const title = main.querySelector("h1");
    document.title = `${title ? `${title.textContent} · ` : ""}${document.querySelector(".brand b").textContent}`;
    main.dataset.ready = page || "summary";
    window.scrollTo(0, 0);
    if (mine > 1) { main.focus({ preventScroll: true }); CLT.say(title ? title.textContent : ""); }
  }

  CLT.start = () => {
    document.getElementById("nav").append(...NAV.map(([page, name]) => h("a", { href: CLT.href(page), "data-page": page }, name)));
    window.addEventListener("hashchange", show);
    show();
  };
})();
