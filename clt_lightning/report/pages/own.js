// The page of an image that was dropped or picked: what the report shows of its own images.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.pages.own = async ([image], query) => {
    if (!CLT.live.on) return CLT.live.needed("own");
    let data;
    try {
      data = await CLT.live.ask("page", { image: String(image) });
    } catch (error) {
      // of an earlier start of the server; an image of the split can be read again
      if (!query.key) throw error;
      const opened = await CLT.live.ask("pick", { key: query.key });
      data = await CLT.live.ask("page", { image: opened.image });
    }
    const key = query.key || "";
    return CLT.imagePage(data, {
      query,
      bar: h("a", { href: CLT.href("live", [], key ? { key } : {}) }, "← back to trying"),
      remember: (state) => CLT.remember("own", [image], { key, ...state }),
    });
  };
})();
