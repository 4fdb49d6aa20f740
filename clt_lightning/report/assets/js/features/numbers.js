// The numbers of a feature that one can sort by, and put on the axes of the scatter.
(() => {
  "use strict";
  const percent = (v) => CLT.percent(v, v !== 0 && Math.abs(v) < 0.001 ? 3 : Math.abs(v) < 0.1 ? 2 : 1);
  const fixed = (digits) => (v) => CLT.fixed(v, digits);
  const signed = (v) => (v > 0 ? "+" : "") + CLT.num(v, 3);

  // log: drawn on a logarithmic axis; short: heading of a column; about: what it is
  const NUMBERS = {
    frequency: {
      title: "share of tokens",
      short: "Frequency",
      log: true,
      show: percent,
      about: "Share of tokens on which it is active",
    },
    image_frequency: {
      title: "share of images",
      short: "Images",
      log: true,
      show: percent,
      about: "Share of images on which it is active",
    },
    mean_code: { title: "mean code", short: "Mean code", show: CLT.num, about: "Mean of its non-zero codes" },
    max_code: { title: "largest code", short: "Max", show: CLT.num, about: "Its largest code" },
    monosemanticity: {
      title: "monosemanticity",
      short: "MS",
      show: fixed(3),
      about: "Mean cosine between its images' CLIP embeddings, weighted by activation",
    },
    label_entropy: {
      title: "entropy over classes",
      short: "Entropy",
      show: fixed(2),
      about: "Entropy in nats of its activation over classes; low: few classes",
    },
    lift: {
      title: "lift of its class",
      short: "Lift",
      log: true,
      show: (v) => `×${CLT.num(v, 2)}`,
      about: "How many times as often its class is among its images as among all",
    },
    strength: {
      title: "effect, over all images",
      short: "Effect (rms)",
      log: true,
      show: CLT.num,
      about:
        "Root mean square, over all images, of its total effect on the predicted class's logit minus the mean of all",
    },
    effect: {
      title: "effect where active",
      short: "Effect",
      show: signed,
      about:
        "Mean total effect on the predicted class's logit minus the mean of all, over the images on which it is active",
    },
    margin: {
      title: "effect on the margin",
      short: "Margin",
      show: signed,
      about: "Mean total effect on the predicted class's logit minus the runner-up's, where it is active",
    },
    cls_share: { title: "[CLS] share", short: "[CLS]", show: percent, about: "Share of its firings that are at [CLS]" },
    written: {
      title: "layers written",
      short: "Layers",
      show: fixed(2),
      about: "Effective number of layers that it writes to, by squared decoder norm",
    },
    reach: {
      title: "layers ahead",
      short: "Reach",
      show: fixed(2),
      about: "How many layers ahead it writes on average, by squared decoder norm",
    },
  };
  CLT.numbersOf = (c) =>
    Object.entries(NUMBERS)
      .filter(
        ([key]) =>
          c[key] && (key !== "label_entropy" || c.classnames.length) && (key !== "lift" || c.classnames.length > 1),
      )
      .map(([key, number]) => ({ key, ...number }));
})();
