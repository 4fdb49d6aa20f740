// How the classes' mean probabilities change under an edit, with intervals over images.
(() => {
  "use strict";
  const { h } = CLT;
  const SHOWN = 6; // classes each way
  const LEAST = 5e-5; // less reads 0.00 points
  const points = (v, digits = 2) => `${v > 0 ? "+" : ""}${CLT.fixed(100 * v, digits)}`;
  CLT.steering.points = points;

  CLT.steering.classes = (data, files) => {
    const order = data.mean_change.map((v, k) => [v, k]).sort((a, b) => b[0] - a[0]);
    const gain = order.slice(0, SHOWN).filter(([v]) => v >= LEAST);
    const loss = order.slice(-SHOWN).filter(([v]) => v <= -LEAST);
    const numbers = CLT.table(
      [{ name: "Class", text: true }, "before", "after", "points", { name: "95 % interval", text: true }],
      order.map(([v, k]) => [
        data.classnames[k],
        { v: data.mean_before[k], t: CLT.percent(data.mean_before[k], 2) },
        { v: data.mean_before[k] + v, t: CLT.percent(data.mean_before[k] + v, 2) },
        { v, t: points(v) },
        data.mean_change_interval[k].map((end) => points(end)).join(" to "),
      ]),
    );
    return CLT.figure({
      title: "Classes that gain and lose",
      note: "Points of the class's mean probability, with the 95 % interval over images.",
      files,
      body:
        gain.length + loss.length
          ? CLT.charts.bars({
              items: [...gain, ...loss].map(([v, k]) => ({
                name: data.classnames[k].slice(0, 18),
                value: 100 * v,
                low: 100 * data.mean_change_interval[k][0],
                high: 100 * data.mean_change_interval[k][1],
              })),
              show: (v) => `${v > 0 ? "+" : ""}${CLT.fixed(v, 2)}`,
              label: "Change of the classes' mean probability in points",
            })
          : h("p", { class: "note" }, "No class's mean probability changes by 0.01 points."),
      numbers,
    });
  };
})();
