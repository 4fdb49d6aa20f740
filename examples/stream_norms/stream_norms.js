// A page of one's own: the table of what StreamNorms has measured.
(() => {
  "use strict";
  const { h } = CLT;
  CLT.pages.stream_norms = async () => {
    const { evaluation: e, files } = await CLT.load("report");
    const norms = e?.extra?.stream_norms;
    const head = [h("h1", {}, "Stream norms")];
    if (!norms) return [head, CLT.missing("stream_norms", "Not measured")];
    const rows = norms.stream.map((norm, layer) => [
      layer,
      CLT.num(norm),
      CLT.num(norms.error[layer]),
      CLT.percent(norms.error[layer] / norm),
    ]);
    return [
      head,
      h("p", { class: "lead" }, `Mean norms at ${CLT.tokenName(norms.tokens)}: the stream before each block, and the error.`),
      h("section", { class: "card" }, CLT.table(["layer", "stream", "error", "share"], rows)),
      h("p", { class: "note" }, CLT.downloads(files.stream_norms)),
    ];
  };
})();
