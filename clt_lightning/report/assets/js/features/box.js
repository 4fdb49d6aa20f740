// The scatter's box in numbers: for the keyboard, and to set it exactly.
(() => {
  "use strict";
  const { h } = CLT;
  const OPEN = 1e30; // an end that was left open

  // onchange(box or null): {x0, x1, y0, y1} in the axes' units; `show(name of x, name of y, box)` fills the fields
  CLT.boxInputs = (onchange) => {
    const inputs = {};
    const change = () => {
      const box = {};
      for (const [key, input] of Object.entries(inputs)) {
        const value = Number.parseFloat(input.value.replace(",", "."));
        box[key] = Number.isNaN(value) ? (key.endsWith("0") ? -OPEN : OPEN) : value;
      }
      onchange(Object.values(box).every((v) => Math.abs(v) === OPEN) ? null : box);
    };
    const field = (key, name) => {
      inputs[key] = h("input", {
        type: "text",
        inputmode: "decimal",
        "aria-label": name,
        placeholder: "any",
        onchange: change,
      });
      return inputs[key];
    };
    const names = [h("span"), h("span")];
    const line = (n, from, to, name) =>
      h("span", { class: "range" }, names[n], field(from, `${name} axis, from`), "to", field(to, `${name} axis, to`));
    const node = h(
      "details",
      { class: "ranges" },
      h("summary", {}, "Box in numbers"),
      line(0, "x0", "x1", "horizontal"),
      line(1, "y0", "y1", "vertical"),
    );
    const show = (x, y, box) => {
      names[0].textContent = x;
      names[1].textContent = y;
      for (const [key, input] of Object.entries(inputs))
        input.value = box && Math.abs(box[key]) !== OPEN ? CLT.short(box[key]) : "";
    };
    return { node, show };
  };
})();
