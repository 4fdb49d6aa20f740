"""Linear probes of an image's class, on its embedding or on pooled features, reconstructions and codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.intervals import Interval, share_interval
from clt_lightning.analysis.probes.fit import Probe, Rows, accuracy, check_ks, fit_classes, mean_recall
from clt_lightning.backbone import Backbone
from clt_lightning.backbone.class_head import ClassHead, on_unit_embeddings
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder

#: What a probe may read
SOURCES = ("embedding", "features", "reconstruction", "codes")
#: How the tokens of an image become one vector
POOLS = ("cls", "mean", "max")
SPLITS = ("train", "val", "test")
_DRAWS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """One probe, measured.

    Attributes:
        source: what it reads, of `SOURCES`.
        pool: how tokens were pooled, of `POOLS`; None for the embedding.
        layer: the transcoder's layer; None for the embedding.
        k: columns that it reads; None: all.
        width: columns that there are.
        penalty: the regularisation that `val` chose.
        val: accuracy on `val`; `test`: on `test`, with its 95 % interval.
        mean_recall: on `test`, mean over classes.
        n: images of the splits, by name.
        probe: the probe itself.
    """

    source: str
    pool: str | None
    layer: int | None
    k: int | None
    width: int
    penalty: float
    val: float
    test: Interval
    mean_recall: float
    n: dict[str, int]
    probe: Probe

    def to_json(self) -> dict[str, Any]:
        """Plain values; of a k-sparse probe with the columns that it reads."""
        chosen = None if self.probe.chosen is None else self.probe.chosen.tolist()
        plain = ("source", "pool", "layer", "k", "width", "penalty", "val", "mean_recall", "n")
        return {name: getattr(self, name) for name in plain} | {"test": self.test.to_json(), "columns": chosen}


@torch.no_grad()
def collect(
    backbone: Backbone,
    clt: CrossLayerTranscoder | None,
    batches: Iterable[Mapping[str, Any]],
    sources: Sequence[str] = ("embedding",),
    pool: str = "mean",
    layer: int = -1,
) -> dict[str, Rows]:
    """By source one vector per image, with its label; images without a label (-1) are left out. One pass over them.

    Args:
        backbone: the frozen backbone.
        clt: the transcoder; not needed for the embedding.
        batches: `image` and `label`.
        sources: any of `embedding` (of length 1), and of one layer of the transcoder `features` (what it rebuilds),
            `reconstruction` and `codes`.
        pool: `cls`, or `mean` or `max` over the patches.
        layer: the transcoder's layer; negative ones count from the end.

    Raises:
        UserError: labels of several categories an image, no label at all, or a source, pool or layer that is none.
    """
    wrong = [source for source in sources if source not in SOURCES]
    if wrong or pool not in POOLS:
        raise UserError(f"a probe reads one of {', '.join(SOURCES)}, pooled by {', '.join(POOLS)}, got {wrong or pool}")
    of_layer = [source for source in sources if source != "embedding"]
    span = backbone.tokens.span("cls" if pool == "cls" else "patch") if of_layer else slice(0)
    rows: dict[str, list[Tensor]] = {source: [] for source in sources}
    labels = []
    for batch in batches:
        label = batch.get("label")
        if "multi_hot" in batch:
            raise UserError("images of several categories: a probe of classes needs one label an image")
        if label is None or not bool((label >= 0).any()):
            continue
        images = batch["image"][label >= 0]
        labels.append(label[label >= 0].cpu().long())
        if "embedding" in rows:
            rows["embedding"].append(backbone.encode_image(images).float().cpu())
        if of_layer:
            assert clt is not None, "a transcoder is needed"
            seen = tokens_of_layer(backbone, clt, images, layer)
            for source in of_layer:
                rows[source].append(pooled(seen[source], span, pool).float().cpu())
    if not labels:
        raise UserError("the images have no labels: a probe learns from them (docs/data.md says how tars name classes)")
    y = torch.cat(labels)
    return {source: Rows(torch.cat(vectors), y) for source, vectors in rows.items()}


def pooled(tokens: Float[Tensor, "images ... width"], span: slice, pool: str) -> Float[Tensor, "images width"]:
    """`(images, width)`: one vector per image, the mean of its tokens in a span, or with `pool="max"` their maximum."""
    tokens = tokens[:, None] if tokens.ndim == 2 else tokens[:, span]
    return tokens.amax(1) if pool == "max" else tokens.mean(1)


def tokens_of_layer(
    backbone: Backbone, clt: CrossLayerTranscoder, images: Float[Tensor, "images 3 size size"], layer: int
) -> dict[str, Float[Tensor, "images ... _"]]:
    """Of one of the transcoder's layers what `tokens_of_layers` gives.

    Args:
        backbone: the frozen backbone.
        clt: the transcoder.
        images: preprocessed.
        layer: the transcoder's layer; negative ones count from the end.

    Raises:
        UserError: no such layer.
    """
    if not -clt.n_layers <= layer < clt.n_layers:
        raise UserError(f"layer {layer} does not exist: the transcoder has layers 0 to {clt.n_layers - 1}")
    return next(tokens_of_layers(backbone, clt, images, [layer]))


def tokens_of_layers(
    backbone: Backbone, clt: CrossLayerTranscoder, images: Float[Tensor, "images 3 size size"], layers: Sequence[int]
) -> Iterator[dict[str, Float[Tensor, "images ... _"]]]:
    """Layer by layer what the transcoder rebuilds, the reconstruction and the codes, from one forward.

    Args:
        backbone: the frozen backbone.
        clt: the transcoder.
        images: preprocessed.
        layers: of the transcoder.

    Yields:
        `features`, `reconstruction` and `codes`: `(images, positions, width)`; of the site `final` `(images, width)`.
    """
    sites = str(clt.sites.read), str(clt.sites.write)
    acts = backbone.capture(images, check_fit(backbone, clt), sites=sites)
    out = clt(acts.x)
    for layer in layers:
        codes = out.codes.dense_layer(layer % clt.n_layers)
        found = {"features": acts.y[layer], "reconstruction": out.y_hat[layer], "codes": codes}
        if sites[0] != "final":
            found = {name: tokens.unflatten(0, (len(images), -1)) for name, tokens in found.items()}
        yield found


def probe_images(
    backbone: Backbone,
    clt: CrossLayerTranscoder | None,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    n_classes: int,
    sources: Sequence[str] = ("embedding",),
    pool: str = "mean",
    layer: int = -1,
    ks: Sequence[int] = (),
    seed: int = 0,
) -> list[ProbeResult]:
    """A linear probe and k-sparse ones: learned on `train`, regularised by `val`, measured on `test`.

    Args:
        backbone, clt, sources, pool, layer: as `collect` takes them.
        splits: batches of `train`, `val` and `test`.
        n_classes: number of classes.
        ks: of k-sparse probes: they read the columns that differ most between the classes of `train`.
        seed: of the interval's draws.

    Raises:
        UserError: a split without labels, fewer than two classes, or a label beyond the classes.
    """
    rows: dict[str, dict[str, Rows]] = {}
    for name in SPLITS:
        try:
            rows[name] = collect(backbone, clt, splits[name], sources, pool, layer)
        except UserError as error:
            raise UserError(f"split {name!r}: {error}") from error
        top = int(next(iter(rows[name].values())).y.max())
        if top >= n_classes:
            raise UserError(f"split {name!r}: label {top} is beyond the {n_classes} classes")
    n = {name: len(next(iter(found.values())).y) for name, found in rows.items()}
    widths = {source: rows["train"][source].x.shape[1] for source in sources}
    plan = [(source, k) for source in sources for k in (None, *check_ks(ks, widths[source]))]
    results = []
    for source, k in track(plan, "probes", unit="probes"):
        train, val, test = (rows[name][source] for name in SPLITS)
        of_layer = source != "embedding"
        # on the embedding without a constant: such a probe is a head like the zero-shot one
        probe = fit_classes(train, val, n_classes, k, intercept=of_layer)
        predicted = probe.classes(test.x)
        results.append(
            ProbeResult(
                source=source,
                pool=pool if of_layer else None,
                layer=layer % clt.n_layers if of_layer and clt is not None else None,
                k=k,
                width=widths[source],
                penalty=probe.penalty,
                val=accuracy(probe.classes(val.x), val.y),
                test=share_interval(int((predicted == test.y).sum()), n["test"], _DRAWS, seed),
                mean_recall=mean_recall(predicted, test.y, n_classes),
                n=n,
                probe=probe,
            )
        )
    return results


def probe_head(backbone: Backbone, result: ProbeResult, classnames: Sequence[str]) -> ClassHead:
    """A probe of the embedding as the backbone's head.

    Raises:
        UserError: it reads something else, or some columns alone.
    """
    if result.source != "embedding" or result.k is not None:
        raise UserError("a head reads the whole embedding: take the result of source 'embedding' without k")
    matrix = result.probe.weight / backbone.logit_scale
    sha = str(backbone.describe()["weights_sha256"])
    return ClassHead("probe", matrix, list(classnames), sha, result.to_json())


@torch.no_grad()
def classifier_head(
    backbone: Backbone, batches: Iterable[Mapping[str, Any]], classnames: Sequence[str]
) -> tuple[ClassHead, float]:
    """The model's own classifier as a head on unit embeddings.

    Args:
        backbone: one that has a classifier.
        batches: images, from which the embeddings' mean length and direction are taken.
        classnames: names of the classifier's classes, in its order.

    Returns:
        the head; and on how many of the images (a share) it names the classifier's own class.

    Raises:
        UserError: there is no classifier, or it has another number of classes.
    """
    weight, bias = (part.cpu() for part in backbone.classifier())
    if weight.shape[1] != len(classnames):
        raise UserError(
            f"'{backbone.name}' has a classifier of {weight.shape[1]} classes, the data name {len(classnames)}: train "
            "a probe instead (--head probe)"
        )
    raw = torch.cat([backbone.encode_image(batch["image"], normalize=False).float().cpu() for batch in batches])
    norms = raw.norm(dim=1, keepdim=True)
    unit = raw / norms
    matrix = on_unit_embeddings(weight, bias, float(norms.mean()), unit.mean(0), backbone.logit_scale)
    agreement = float(((unit @ matrix).argmax(1) == (raw @ weight + bias).argmax(1)).float().mean())
    sha = str(backbone.describe()["weights_sha256"])
    info = {"agreement": agreement, "images": len(raw)}
    return ClassHead("classifier", matrix, list(classnames), sha, info), agreement
