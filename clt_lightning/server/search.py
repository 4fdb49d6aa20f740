"""Images and features nearest to a phrase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.effects.direct import direct_effects, read_out, read_out_scale
from clt_lightning.analysis.features import Features
from clt_lightning.analysis.names import embed_words
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.analysis.run import Run
from clt_lightning.analysis.tower import Observation, reads_cls_only
from clt_lightning.backbone.clip.tokenizer import unknown_words
from clt_lightning.core.errors import UserError

LONGEST = 300
_IMAGES, _FEATURES = 24, 16
#: Images of a feature below which the mean of them says little
_LEAST = 5


@dataclass
class _Directions:
    """Images of the features of one layer: which are active, how strongly, and how long their weighted sum is."""

    images: Tensor
    features: Tensor
    values: Tensor
    norms: Tensor
    counts: Tensor


class PhraseSearch:
    """Looks for what is nearest to a phrase among some images and all features.

    Both sides are taken relative to their own mean, as for the names on the cards: all images share a direction, all
    texts another one.

    Args:
        run: the opened run.
        keys: of the images.
        embeddings: `(images, embed_dim)`, unit.
        seen: some images at work, for the scale of what features add to a logit.
        features: what `test` collected; None: no features are found.
        retrieval: the images' codes; None: no features by what they respond to.
        texts: names that all phrases are compared with: the mean of their embeddings is taken off.
    """

    def __init__(
        self,
        run: Run,
        keys: list[str],
        embeddings: Tensor,
        seen: Observation | None,
        features: Features | None,
        retrieval: Retrieval | None,
        texts: list[str],
    ) -> None:
        self.run, self.features = run, features
        self.embeddings = embeddings.double().cpu()
        self.centred = self.embeddings - self.embeddings.mean(0) if len(embeddings) else self.embeddings
        found = embed_words(run.clip, texts)
        self.mean_text = None if found is None or len(found) < 2 else found.double().cpu().mean(0)
        self.scale = None
        if seen is not None and reads_cls_only(run.clip) and run.transcoder.topology != "sae":
            self.scale = float(read_out_scale(run.clip, seen)[0].mean())
        self.by_layer = [] if retrieval is None else self._directions(keys, retrieval)

    def _directions(self, keys: list[str], retrieval: Retrieval) -> list[_Directions]:
        place = {key: n for n, key in enumerate(retrieval.keys)}
        rows = [(n, place[key]) for n, key in enumerate(keys) if key in place]
        mine = torch.tensor([n for n, _ in rows], dtype=torch.int64)
        theirs = np.array([n for _, n in rows], dtype=np.int64)
        out = []
        for layer in range(retrieval.n_layers):
            values = torch.from_numpy(retrieval.values[layer, theirs]).double()
            features = torch.from_numpy(retrieval.indices[layer, theirs].astype(np.int64))
            images = mine[:, None].expand_as(features)
            active = values != 0
            values, features, images = values[active].abs(), features[active], images[active]
            sums = torch.zeros(retrieval.n_features, self.centred.shape[1], dtype=torch.float64)
            sums.index_add_(0, features, values[:, None] * self.centred[images])
            counts = torch.bincount(features, minlength=retrieval.n_features)
            out.append(_Directions(images, features, values, sums.norm(dim=1), counts))
        return out

    @torch.no_grad()
    def find(self, phrase: str) -> dict[str, Any]:
        """What is nearest.

        Args:
            phrase: any text.

        Returns:
            `images`: `[image, cosine]`; `responds`: `[layer, feature, cosine, images]`, by the mean of the images on
            which a feature is active, weighted by its code; `writes`: `[layer, feature, logit]`, by what its mean code
            at [CLS] adds to the logit of the phrase, minus that of all texts, through the read-out; None where that is
            not known.

        Raises:
            UserError: no text, too much of it, or words that the text tower does not know.
        """
        phrase = " ".join(phrase.split())
        if not phrase:
            raise UserError("give a word or a phrase")
        if len(phrase) > LONGEST:
            raise UserError(f"{len(phrase):,} letters are too many: at most {LONGEST} are read")
        unknown = unknown_words([phrase], self.run.clip.tokenizer)
        if unknown:
            raise UserError(
                f"the text tower of this CLIP does not know {', '.join(dict.fromkeys(unknown))}: its vocabulary is "
                "small"
            )
        found = embed_words(self.run.clip, [phrase])
        assert found is not None
        text = found[0].double().cpu()
        direction = F.normalize(text if self.mean_text is None else text - self.mean_text, dim=0)
        cosines = F.normalize(self.embeddings, dim=1) @ text if len(self.embeddings) else torch.zeros(0)
        order = cosines.argsort(descending=True, stable=True)[:_IMAGES].tolist()
        return {
            "phrase": phrase,
            "images": [[n, float(cosines[n])] for n in order],
            "responds": self._responding(direction) if self.by_layer else None,
            "writes": self._writing(text) if self.scale is not None and self.features is not None else None,
        }

    def _responding(self, direction: Tensor) -> list[list[Any]]:
        near = self.centred @ direction
        rows: list[list[Any]] = []
        for layer, part in enumerate(self.by_layer):
            sums = torch.zeros(len(part.norms), dtype=torch.float64)
            sums.index_add_(0, part.features, part.values * near[part.images])
            cosines = (sums / part.norms.clamp(min=1e-30)).where(part.counts >= _LEAST, -torch.inf)
            best = cosines.topk(min(_FEATURES, len(cosines)))
            rows += [
                [layer, f, v, int(part.counts[f])] for f, v in zip(best.indices.tolist(), best.values.tolist()) if v > 0
            ]
        return sorted(rows, key=lambda row: -row[2])[:_FEATURES]

    def _writing(self, text: Tensor) -> list[list[Any]]:
        assert self.scale is not None
        assert self.features is not None
        base = torch.zeros_like(text) if self.mean_text is None else self.mean_text
        # `direct_effects` takes the mean over its directions off: half of the difference on either side of it
        head = torch.stack([text, 2 * base - text], 1)
        directions = read_out(self.run.clip, head.to(self.run.clip.device)) * self.scale
        stats = self.features.stats
        rows: list[list[Any]] = []
        for layer in range(self.run.transcoder.n_layers):
            code = stats["mean_code"][layer] * (stats["cls_frequency"][layer] > 0)
            effects = direct_effects(self.run.transcoder, layer, directions)[0][:, 0].double().cpu()
            effects = effects * torch.from_numpy(np.nan_to_num(code).astype(np.float64))
            best = effects.topk(min(_FEATURES, len(effects)))
            rows += [[layer, f, v] for f, v in zip(best.indices.tolist(), best.values.tolist()) if v > 0]
        return sorted(rows, key=lambda row: -row[2])[:_FEATURES]
