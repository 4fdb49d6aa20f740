// What the model says: of the image at work at once, of the stored ones batch by batch.
(() => {
  "use strict";
  const { h } = CLT;
  const SHOWN = 32;
  const REST = 250; // ms without a further move before the stored images are asked

  const best = (p, n) =>
    p
      .map((v, c) => [v, c])
      .sort((a, b) => b[0] - a[0])
      .slice(0, n)
      .map(([, c]) => c);

  // the probabilities of one image, before and after; `ask()` gives the question, null without an image
  CLT.live.probabilities = ({ about, ask, fine, problem }) => {
    const bars = h("div", { class: "twobars" });
    const headline = h("p", { class: "headline", role: "status" });
    function draw({ before, after }) {
      const classes = [...new Set([...best(before, 5), ...best(after, 5)])].sort((x, y) => before[y] - before[x]);
      bars.replaceChildren(
        ...classes.map((k) =>
          h(
            "div",
            { class: "twobar" },
            h("span", { class: "cut", title: about.classnames[k] }, about.classnames[k]),
            h(
              "span",
              { class: "bars", "aria-hidden": "true" },
              h("i", { class: "was", style: { width: `${100 * before[k]}%` } }),
              h("i", { class: "is", style: { width: `${100 * after[k]}%` } }),
            ),
            h("span", { class: "n" }, CLT.percent(before[k])),
            h("b", { class: "n", "data-class": k }, CLT.percent(after[k])),
          ),
        ),
      );
      const [was, is] = [best(before, 1)[0], best(after, 1)[0]];
      headline.replaceChildren(
        ...(was === is
          ? [`Seen as ${about.classnames[is]}, ${CLT.percent(after[is])}.`]
          : [
              `Seen as ${about.classnames[was]} before; now as `,
              h("b", {}, about.classnames[is]),
              `, ${CLT.percent(after[is])}.`,
            ]),
      );
    }
    let busy = false;
    let again = false;
    let failed = false;
    async function follow() {
      if (busy) {
        again = true; // of a slider's places only the last one counts
        return;
      }
      busy = true;
      try {
        do {
          again = false;
          const question = ask();
          if (!question) break;
          draw(await CLT.live.ask("steer", question));
          if (failed) fine(); // what others have said stays
          failed = false;
        } while (again);
      } catch (error) {
        failed = error.name !== "AbortError";
        problem(error);
      } finally {
        busy = false;
      }
    }
    return { nodes: [headline, bars], follow };
  };

  // what the same changes do to the stored images; `ask()` gives the question, null without changes
  CLT.live.flips = ({ about, ask, pick, problem }) => {
    const out = h("div", {});
    const said = h("p", { class: "note", role: "status" });
    const name = (k) => about.classnames[k];

    async function ended(line, list) {
      const order = line.mean.map((v, k) => [v, k]).sort((a, b) => b[0] - a[0]);
      const moved = [...order.slice(0, 4).filter(([v]) => v > 0), ...order.slice(-4).filter(([v]) => v < 0)];
      const shown = list.slice(0, SHOWN);
      const images = shown.map(([n]) => n);
      const { pictures } = images.length ? await CLT.live.ask("thumbnails", { images }) : { pictures: [] };
      if (line.top1)
        said.textContent += `; top-1 ${CLT.percent(line.top1[0])} before, ${CLT.percent(line.top1[1])} after.`;
      out.replaceChildren(
        h("h3", {}, "Classes that gain and lose, in points of mean probability"),
        CLT.charts.bars({
          items: moved.map(([v, k]) => ({ name: name(k).slice(0, 18), value: 100 * v })),
          show: (v) => `${v > 0 ? "+" : ""}${CLT.fixed(v, 2)}`,
          label: "Change of the classes' mean probability in points",
        }),
        h(
          "div",
          { class: "flips" },
          shown.map(([n, was, p, is, q], at) =>
            h(
              "button",
              { type: "button", class: "flip", onclick: () => pick(about.stored[n][0]), title: about.stored[n][0] },
              h("img", { src: pictures[at], alt: "" }),
              h("span", {}, `${name(was)} ${CLT.percent(p, 0)} → `, h("b", {}, `${name(is)} ${CLT.percent(q, 0)}`)),
            ),
          ),
        ),
        list.length > SHOWN ? h("p", { class: "note" }, `${list.length - SHOWN} further ones are not shown.`) : "",
      );
    }

    let waiting = null;
    let running = null;
    async function count() {
      const mine = new AbortController();
      running = mine;
      const list = [];
      try {
        await CLT.live.follow("flips", ask(), mine.signal, (line) => {
          list.push(...line.flips);
          said.textContent = `${CLT.count(line.done)} of ${CLT.count(line.images)} images, ${list.length} of another most probable class`;
          if (line.mean) ended(line, list).catch(problem);
        });
      } catch (error) {
        problem(error);
      }
    }
    function follow() {
      clearTimeout(waiting);
      running?.abort();
      if (about.stored.length && ask()) {
        waiting = setTimeout(count, REST);
        return;
      }
      out.replaceChildren();
      said.textContent = about.stored.length ? "Nothing is changed." : "No images are stored (--images 0).";
    }
    return { nodes: [said, out], follow };
  };
})();
