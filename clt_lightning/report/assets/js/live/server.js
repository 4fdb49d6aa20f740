// The model behind the pages, where there is one (`python -m clt_lightning serve`): CLT.live.on.
(() => {
  "use strict";
  const token = document.querySelector('meta[name="clt-live"]')?.content;
  const headers = { "X-CLT-Token": token };
  let about = null;

  async function answer(promise) {
    let response;
    try {
      response = await promise;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Was it ended?");
    }
    if (response.ok) return response;
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error || `The server said ${response.status}.`);
  }

  CLT.live = {
    on: Boolean(token),
    about: () => {
      about ||= CLT.live.ask("about").catch((error) => {
        about = null;
        throw error;
      });
      return about;
    },
    ask: async (name, content = {}, signal = null) =>
      (await answer(fetch(`api/${name}`, { method: "POST", headers, signal, body: JSON.stringify(content) }))).json(),
    drop: async (file) =>
      (
        await answer(
          fetch(`api/drop?${new URLSearchParams({ name: file.name || "the picture" })}`, {
            method: "POST",
            headers,
            body: file,
          }),
        )
      ).json(),
    // answers come line by line; `online(line)` for each, until the end or until the signal
    follow: async (name, content, signal, online) => {
      const response = await answer(
        fetch(`api/${name}`, { method: "POST", headers, signal, body: JSON.stringify(content) }),
      );
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        rest += value || "";
        const lines = rest.split("\n");
        rest = lines.pop();
        for (const line of lines) {
          const found = JSON.parse(line);
          if (found.error) throw new Error(found.error);
          online(found);
        }
        if (done) return;
      }
    },
  };
  // the page that a report shows where it has no server
  CLT.live.needed = (page) =>
    CLT.live.on
      ? null
      : [
          CLT.h("h1", {}, CLT.page(page).title),
          CLT.h("p", { class: "lead" }, CLT.page(page).about),
          CLT.empty(
            "This needs the model, which a folder on the disk does not have. This starts it: ",
            CLT.h("code", {}, CLT.page(page).needs),
          ),
        ];
  if (CLT.live.on) {
    CLT.navigation("live");
    CLT.navigation("search");
  }
})();
