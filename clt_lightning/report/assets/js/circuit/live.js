// What a served circuit can ask the model: real changes of a set of nodes, and heads of any node.
(() => {
  "use strict";
  let opened = new WeakMap();

  // the model forgets images after a while: then it is given the key once more
  async function ask(data, name, content) {
    const pick = async () => {
      const { image } = await CLT.live.ask("pick", { key: data.key });
      opened.set(data, image);
    };
    if (!opened.has(data)) await pick();
    try {
      return await CLT.live.ask(name, { ...content, image: opened.get(data) });
    } catch (error) {
      if (!/no longer at hand/.test(error.message)) throw error;
      await pick();
      return CLT.live.ask(name, { ...content, image: opened.get(data) });
    }
  }

  // a list as long as `sets`: {observed, predicted: by target, seen}
  CLT.circuitReal = async (data, which, sets) => {
    const { classnames } = await CLT.live.about();
    const found = await ask(data, "intervene", { sets, targets: data.circuits[which].targets });
    return sets.map((_, n) => ({
      observed: found.observed[n],
      predicted: found.predicted[n],
      seen: `${classnames[found.top[n]]} ${CLT.percent(found.probability[n])}`,
    }));
  };

  CLT.circuitLive = (g) => ({ split: (node) => g.isSplit(node), heads: () => null });
  addEventListener("pageshow", () => {
    opened = new WeakMap();
  });
})();
