"""One batch of images, studied: what is shared is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.effects.live import (
    embeddings_without,
    path_effects,
    per_image,
    total_effects,
    written,
)
from clt_lightning.analysis.study.types import Ablation, LayerCodes, Study, StudyOptions
from clt_lightning.analysis.terms import logit_terms
from clt_lightning.analysis.tower import Observation, reads_cls_only
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.interventions.lanes import rows_at_once
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: Targets of one backward pass after another on the same images, whose gradients are held at once
_TARGETS = 8
Table = tuple[Tensor, Tensor, Tensor]


class StudyBatch:
    """What a batch's studies share."""

    def __init__(self, clip: FrozenCLIP, clt: CrossLayerTranscoder, seen: Observation, codes: Codes) -> None:
        self.clip, self.clt, self.seen, self.codes = clip, clt, seen, codes
        self.n = seen.n_images
        self.positions = codes.n_tokens // self.n
        #: `(images, P, F)` of the layers, read again and again
        self.dense = [codes.dense_layer(layer).unflatten(0, (self.n, -1)) for layer in range(clt.n_layers)]

    def codes_alone(self) -> list[Study]:
        """Without classes there is nothing to ask."""
        nothing = torch.zeros(0, dtype=torch.float64)
        none = torch.zeros(0, dtype=torch.int64)
        return [
            Study(
                nothing,
                nothing,
                none,
                [],
                None,
                None,
                none,
                none,
                torch.zeros(0, 1, dtype=torch.float64),
                None,
                torch.zeros(0, 0, dtype=torch.float64),
                none.bool(),
                [],
                self._codes(image, []),
                self.positions,
            )
            for image in range(self.n)
        ]

    def studies(
        self, head: Tensor, own: list[int], cascade: Observation, cascade_codes: Codes, options: StudyOptions
    ) -> list[Study]:
        clip, clt = self.clip, self.clt
        logits = self._logits(self.seen.embeddings, head)
        classes = _asked(logits, own, options.classes)
        directions = torch.cat([head.T[classes.T], head.mean(1).expand(1, self.n, -1)])
        effects = self._effects(directions)
        questions = [_questions(order, label) for order, label in zip(logits.topk(2, 1).indices.tolist(), own)]
        terms = replaced_terms = reading = None
        if reads_cls_only(clip):
            terms, reading = logit_terms(clip, clt, self.seen, self.codes, head)
            if options.full:
                replaced_terms = logit_terms(clip, clt, cascade, cascade_codes, head)[0].cpu()
        after = self._logits(cascade.embeddings, head)
        found = [per_image(self.codes, layer, values, self.n) for layer, values in enumerate(effects)]
        tables = [self._table(image, found) for image in range(self.n)]
        keeps = [_extremes(total, options.shown) for _, _, total in tables]
        integrated, ablations = self._tried(tables, classes, questions, head, options)
        for keep, tried in zip(keeps, ablations):
            keep[[row for ablation in tried for row in ablation.rows]] = True
        out = []
        for image, (layer, feature, total) in enumerate(tables):
            direct = None
            if reading is not None:
                asked = torch.cat([reading[image, classes[image]], reading[image].mean(0, keepdim=True)])
                direct = self._direct(image, layer, feature, keeps[image], asked)
            columns = [[classes[image].tolist().index(c) for c in pair] for pair in questions[image]]
            out.append(
                Study(
                    logits[image].cpu(),
                    after[image].cpu(),
                    classes[image].cpu(),
                    questions[image],
                    None if terms is None else terms[image].cpu(),
                    None if replaced_terms is None else replaced_terms[image],
                    layer.cpu(),
                    feature.cpu(),
                    total.cpu(),
                    direct,
                    integrated[image],
                    keeps[image].cpu(),
                    ablations[image],
                    self._codes(image, [[v[a] - v[b] for a, b in columns] for v in effects]),
                    self.positions,
                )
            )
        return out

    def _logits(self, embeddings: Tensor, head: Tensor) -> Tensor:
        return self.clip.logit_scale * (embeddings.double() @ head.double())

    def _effects(self, directions: Tensor) -> list[Tensor]:
        """For each layer `(targets, pairs)`, a few targets at a time: their gradients are large."""
        parts = [total_effects(self.clip, self.clt, self.seen, self.codes, few) for few in directions.split(_TARGETS)]
        return [torch.cat([part[layer] for part in parts]) for layer in range(self.clt.n_layers)]

    def _table(self, image: int, found: list[Table]) -> Table:
        """Layer, feature and effects `(U, targets)` of everything that is active on an image."""
        layers, features, totals = [], [], []
        for layer, (images, which, sums) in enumerate(found):
            mine = images == image
            features.append(which[mine])
            layers.append(torch.full_like(which[mine], layer))
            totals.append(sums[:, mine.to(sums.device)].T)
        return torch.cat(layers), torch.cat(features), torch.cat(totals)

    def _direct(self, image: int, layer: Tensor, feature: Tensor, kept: Tensor, directions: Tensor) -> Tensor:
        """`(U, targets)`: the codes at [CLS] through the read-out; NaN for what is not kept."""
        out = torch.full((len(layer), len(directions)), torch.nan, dtype=torch.float64)
        for source in range(self.clt.n_layers):
            rows = ((layer == source) & kept.to(layer.device)).nonzero()[:, 0]
            which = feature[rows]
            writes = [t for t in range(source, self.clt.n_layers) if self.clt.writes(source, t)]
            whole = torch.stack([self.clt.rows(source, which, target) for target in writes]).double().sum(0)
            code = self.dense[source][image, 0, which].double()
            out[rows.cpu()] = (code[:, None] * (whole @ directions.T)).cpu()
        return out

    def _codes(self, image: int, effects: list[list[Tensor]]) -> list[LayerCodes]:
        out = []
        mine = slice(image * self.positions, (image + 1) * self.positions)
        for layer, dense in enumerate(self.dense):
            maps = dense[image]
            features = (maps != 0).any(0).nonzero()[:, 0]
            here = torch.zeros(0, len(features), self.positions)
            if effects:
                pairs, _ = self.codes.layer(layer)
                inside = (pairs.tokens >= mine.start) & (pairs.tokens < mine.stop)
                place = pairs.tokens[inside] - mine.start, pairs.features[inside]
                parts = [torch.zeros_like(maps).index_put(place, e[inside].to(maps), True) for e in effects[layer]]
                here = torch.stack([part[:, features].T for part in parts])
            out.append(LayerCodes(features.cpu(), maps[:, features].T.cpu(), here.cpu()))
        return out

    def _tried(
        self,
        tables: list[Table],
        classes: Tensor,
        questions: list[list[tuple[int, int]]],
        head: Tensor,
        options: StudyOptions,
    ) -> tuple[list[Tensor], list[list[Ablation]]]:
        """Integrated effects and real ablations of the features that each question is decided by."""
        integrated = [
            torch.full((len(questions[image]), len(layer)), torch.nan, dtype=torch.float64)
            for image, (layer, _, _) in enumerate(tables)
        ]
        single: list[tuple[int, int, int]] = []  # image, question, row
        for image, (_, _, total) in enumerate(tables):
            for number, pair in enumerate(questions[image]):
                a, b = (classes[image].tolist().index(c) for c in pair)
                effect = total[:, a] - total[:, b]
                if options.full:
                    shown = torch.cat(
                        [effect.topk(min(options.shown, len(effect)), largest=x).indices for x in (True, False)]
                    )
                else:
                    shown = effect.topk(min(options.deciding, len(effect))).indices
                single += [(image, number, row) for row in sorted(set(shown.tolist()))]
        after: dict[tuple[int, int, int], Tensor] = {}
        size = rows_at_once(self.clip)
        for layer in range(self.clt.n_layers):
            here = [entry for entry in single if int(tables[entry[0]][0][entry[2]]) == layer]
            for start in range(0, len(here), size):
                some = here[start : start + size]
                where = torch.tensor([entry[0] for entry in some], device=self.clip.device)
                which = torch.stack([tables[i][1][row] for i, _, row in some])
                parts = written(self.clt, layer, which, self.dense[layer][where, :, which])
                gone, path = self._without(layer, parts, where, [questions[i][n] for i, n, _ in some], head, options)
                after |= dict(zip(some, gone))
                for (i, number, row), value in zip(some, path):
                    integrated[i][number, row] = value
        ablations: list[list[Ablation]] = [[] for _ in tables]
        together: list[tuple[int, int, list[int]]] = []
        predicted: list[float] = []
        for image, (_, _, total) in enumerate(tables):
            for number, pair in enumerate(questions[image]):
                rows = [row for i, n, row in single if (i, n) == (image, number)]
                a, b = (classes[image].tolist().index(c) for c in pair)
                effect = (total[rows, a] - total[rows, b]).cpu()
                if options.full:
                    effect = integrated[image][number, rows]
                order = effect.argsort(descending=True, stable=True).tolist()
                ablations[image] += [
                    Ablation(number, [rows[n]], float(effect[n]), after[image, number, rows[n]]) for n in order
                ]
                first = order[: options.deciding]
                together.append((image, number, [rows[n] for n in first]))
                predicted.append(float(effect[first].sum()))
        for start in range(0, len(together), size):
            sets = together[start : start + size]
            first_layer, parts = self._written_by(sets, tables)
            where = torch.tensor([i for i, _, _ in sets], device=self.clip.device)
            gone, path = self._without(first_layer, parts, where, [questions[i][n] for i, n, _ in sets], head, options)
            values = path or predicted[start : start + size]
            for (i, number, rows), value, logits in zip(sets, values, gone):
                ablations[i].append(Ablation(number, rows, value, logits))
        return integrated, ablations

    def _without(
        self,
        first: int,
        parts: list[Tensor],
        image: Tensor,
        asked: list[tuple[int, int]],
        head: Tensor,
        options: StudyOptions,
    ) -> tuple[list[Tensor], list[float]]:
        """Logits `(C,)` of each row without what its features write; in full also what the path there predicts."""
        gone = self._logits(embeddings_without(self.clip, self.clt, first, parts, self.seen, image), head).cpu()
        if not options.full:
            return list(gone), []
        wanted = torch.stack([head[:, a] - head[:, b] for a, b in asked])
        return list(gone), path_effects(self.clip, first, parts, self.seen, image, wanted[None])[0].tolist()

    def _written_by(self, sets: list[tuple[int, int, list[int]]], tables: list[Table]) -> tuple[int, list[Tensor]]:
        """What each set of features writes together, from the first layer of any of them on."""
        first = min((int(tables[i][0][row]) for i, _, rows in sets for row in rows), default=0)
        parts = [
            torch.zeros(len(sets), self.positions, self.clt.d_model, device=self.clip.device)
            for _ in range(first, self.clt.n_layers)
        ]
        for n, (i, _, rows) in enumerate(sets):
            for row in rows:
                layer, which = int(tables[i][0][row]), tables[i][1][row : row + 1]
                z = self.dense[layer][i, :, which].T
                for target, part in enumerate(written(self.clt, layer, which, z), layer):
                    parts[target - first][n] += part[0]
        return first, parts


def _asked(logits: Tensor, own: list[int], n: int) -> Tensor:
    """`(images, K)`: the most likely classes of each image, and its own one."""
    n = min(max(n, 3), logits.shape[1])
    asked = logits.topk(n, 1).indices
    for image, label in enumerate(own):
        if label >= 0 and label not in asked[image].tolist():
            asked[image, -1] = label
    return asked


def _questions(first: list[int], own: int) -> list[tuple[int, int]]:
    """Predicted minus runner-up; predicted minus the image's own class, where that is neither."""
    predicted, second = first
    return [(predicted, second), *([(predicted, own)] if own >= 0 and own not in first else [])]


def _extremes(total: Tensor, n: int) -> Tensor:
    """`(U,)` bool: the n largest and smallest of every class, and of every difference of two and of one to the mean.

    Args:
        total: `(U, classes + 1)` effects, the mean of all classes last.
        n: how many of either sign.
    """
    classes = total.shape[1] - 1
    a, b = torch.triu_indices(classes + 1, classes + 1, 1, device=total.device)
    kept = torch.zeros(len(total), dtype=torch.bool, device=total.device)
    n = min(n, len(total))
    for columns in (total, *((total[:, x] - total[:, y]) for x, y in zip(a.split(256), b.split(256)))):
        for largest in (True, False):
            kept[columns.topk(n, 0, largest=largest).indices.flatten()] = True
    return kept
