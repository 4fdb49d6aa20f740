// Light and dark: the system's choice until the reader makes one. On paper it is light.
(() => {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const root = document.documentElement;
  CLT.isDark = () => !paper.matches && (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  CLT.cssColor = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const icon = (path) =>
    CLT.svg(
      "svg",
      {
        width: 18,
        height: 18,
        viewBox: "0 0 24 24",
        fill: "none",
        stroke: "currentColor",
        "stroke-width": 2,
        "stroke-linecap": "round",
        "aria-hidden": "true",
      },
      CLT.svg("path", { d: path }),
    );
  const SUN =
    "M12 4V2M12 22v-2M4 12H2M22 12h-2M5.6 5.6 4.2 4.2M19.8 19.8l-1.4-1.4M5.6 18.4l-1.4 1.4M19.8 4.2l-1.4 1.4M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0Z";
  const MOON = "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z";
  function show() {
    document.getElementById("theme").replaceChildren(icon(CLT.isDark() ? SUN : MOON));
    window.dispatchEvent(new Event("themechange"));
  }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = CLT.isDark() ? "light" : "dark";
    try {
      localStorage.setItem("clt-theme", root.dataset.theme);
    } catch (_) {
      /* private mode: it lasts for this visit */
    }
    show();
  });
  dark.addEventListener("change", show);
  paper.addEventListener("change", show);

  // calls `draw` on a change of theme for as long as the node is in the page
  CLT.onTheme = (node, draw) => {
    const listen = () => (node.isConnected ? draw() : window.removeEventListener("themechange", listen));
    setTimeout(() => window.addEventListener("themechange", listen));
  };
  show();
})();
