// A button that puts a text into the clipboard, and says so.
(() => {
  "use strict";
  const { h } = CLT;
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch (_) {
      // from the disk, and in older browsers: by hand
      const area = h("textarea", { class: "sr", readonly: true }, text);
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) throw new Error("the browser does not allow it");
    }
  }
  // text(): what is copied
  CLT.copyButton = (label, text) => {
    const button = h("button", { type: "button", class: "plain small", onclick: take }, label);
    async function take() {
      try {
        await copy(text());
        button.textContent = "copied";
        CLT.say(`${label}: copied`);
      } catch (error) {
        button.textContent = `not copied: ${error.message}`;
      }
      setTimeout(() => {
        button.textContent = label;
      }, 1600);
    }
    return button;
  };
})();
