"""The model at work for the pages: images that were dropped or picked, features that are moved, phrases."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.forward import embed_stream
from clt_lightning.analysis.circuits.image_model import ImageModel, model_of_image
from clt_lightning.analysis.circuits.intervention import intervene_on
from clt_lightning.analysis.circuits.nodeset import NodeSet
from clt_lightning.analysis.circuits.rerun import rerun
from clt_lightning.analysis.effects import image_directions, total_effects
from clt_lightning.analysis.effects.live import per_image
from clt_lightning.analysis.run import Run
from clt_lightning.analysis.sliders import SteeredImages
from clt_lightning.analysis.steering import Edit
from clt_lightning.analysis.target import Target
from clt_lightning.analysis.tower import observe
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.report.source import Source
from clt_lightning.report.studies import image_page_data
from clt_lightning.server.pictures import address_of, read_picture
from clt_lightning.server.search import PhraseSearch
from clt_lightning.server.turns import Turns
from clt_lightning.transcoder import Codes

#: Features with a slider each, and those that are moved at once
SLIDERS, MOST_EDITS = 8, 256
#: Sets of nodes in one question, nodes of a set, and numbers that are read
MOST_SETS, MOST_NODES, MOST_TARGETS = 64, 512, 10
#: Images that were dropped or picked and are still known
KEPT = 16
_BATCH = 16
_SUGGESTED = 12
_THUMBNAIL = 96


@dataclass(frozen=True)
class SessionOptions:
    """What a session keeps at hand.

    Args:
        split: the split that images come from.
        images: stored images, evenly spaced over the split, on which flips are counted.
    """

    split: str = "test"
    images: int = 256

    def __post_init__(self) -> None:
        if self.images < 0:
            raise UserError(f"--images must be 0 or more, got {self.images}")


@dataclass
class Opened:
    """An image at work.

    Attributes:
        name: its key, or the name of the file that was dropped.
        label: its class; -1: none.
        image: `(3, size, size)`, preprocessed.
        codes: of all its tokens.
        steered: it alone, to be steered.
        suggested: features that matter most for it: layer, feature, what their codes add to the margin.
        circuit: what interventions on its nodes start from, once one was asked for.
    """

    name: str
    label: int
    image: Tensor
    codes: Codes
    steered: SteeredImages
    suggested: list[list[Any]]
    circuit: ImageModel | None = None


class Session:
    """A run's model and some of its images, for one server; safe to call from several threads.

    Args:
        run: the opened run.
        options: what is kept at hand.
        source: what `test` found, for the search of features; None: there is none.
        progress: say how far it is while images are read.

    Raises:
        UserError: the data cannot be read, or have no class names.
    """

    def __init__(self, run: Run, options: SessionOptions, source: Source | None = None, progress: bool = False) -> None:
        self.run, self.options, self.source, self.turns = run, options, source, Turns()
        self.head: Tensor = run.require_head("no probability to show")
        self.classnames: list[str] = list(run.datamodule.classnames)
        self.keys: list[str] = []
        self.labels: list[int] = []
        self._pixels: list[Tensor] = []
        self.stored = SteeredImages(run.clip, run.transcoder, self.head, self._read(progress))
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()
        self._round = 0
        self._search: PhraseSearch | None = None

    def _read(self, progress: bool) -> Iterator[Tensor]:
        if not self.options.images:
            return
        with Progress("images", self.options.images, "images", show=progress) as bar:
            for batch in self.run.batches(self.options.split, limit=self.options.images):
                images = batch["image"]
                self.keys += list(batch["key"])
                labels = batch.get("label")  # data need not have any
                self.labels += [-1] * len(images) if labels is None else [int(label) for label in labels]
                self._pixels += [self.run.pixels(image) for image in images]
                bar.update(len(images))
                yield from images.split(_BATCH)

    def close(self) -> None:
        """Ends what runs in the background."""
        with self._lock:
            self._round += 1

    # -- what there is -----------------------------------------------------------------------------------------------
    def about(self) -> dict[str, Any]:
        """What the pages must know of the model."""
        clt = self.run.transcoder
        return {
            "classnames": self.classnames,
            "layers": clt.n_layers,
            "features": clt.n_features,
            "grid": list(self.run.clip.grid),
            "size": self.run.clip.image_size,
            "steers": clt.topology != "sae",
            "edits": SLIDERS,
            "most": MOST_EDITS,
            "split": self.options.split,
            "stored": [[key, label] for key, label in zip(self.keys, self.labels)],
        }

    @cached_property
    def _thumbnails(self) -> dict[int, str]:
        return {}

    def thumbnails(self, numbers: Sequence[int]) -> list[str]:
        """Small pictures of stored images, as data addresses."""
        out = []
        for number in numbers:
            if not 0 <= number < len(self.keys):
                raise UserError(f"there is no stored image {number}: there are {len(self.keys)}")
            if number not in self._thumbnails:
                self._thumbnails[number] = address_of(self._pixels[number], _THUMBNAIL)
            out.append(self._thumbnails[number])
        return out

    # -- images ------------------------------------------------------------------------------------------------------
    def drop(self, name: str, data: bytes) -> dict[str, Any]:
        """Takes an image file.

        Raises:
            UserError: it is no image, or a broken or too large one.
        """
        image = self.run.clip.preprocess(read_picture(name, data))
        assert isinstance(image, Tensor)
        return self._open(name, -1, image)

    def pick(self, key: str) -> dict[str, Any]:
        """Takes an image of the split by its key; one that is not stored is looked for in the data.

        Raises:
            UserError: there is none.
        """
        if key in self.keys:
            number = self.keys.index(key)
            return self._open(key, self.labels[number], self._normalised(self._pixels[number]))
        image, label = self.run.samples([key], self.options.split)[key]
        return self._open(key, label, image)

    def _normalised(self, pixels: Tensor) -> Tensor:
        # the arithmetic of the transform: what comes out is what went into `to_pixels`, to the last bit
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.run.clip.mean, self.run.clip.std))
        return pixels.to(torch.float32).div(255).sub(mean).div(std)

    def _open(self, name: str, label: int, image: Tensor) -> dict[str, Any]:
        run = self.run
        with self.turns.now(), torch.no_grad():
            seen = observe(run.clip, image[None].to(run.clip.device))
            codes = run.transcoder.encode(seen.y if run.transcoder.topology == "sae" else seen.x)
            steered = SteeredImages(run.clip, run.transcoder, self.head, [image[None]])
            directions, _ = image_directions(self.head, seen.embeddings)
            effects = total_effects(run.clip, run.transcoder, seen, codes, directions)
            suggested: list[list[Any]] = []
            for layer in range(run.transcoder.n_layers):
                _, features, sums = per_image(codes, layer, effects[layer], 1)
                suggested += [[layer, f, v] for f, v in zip(features.tolist(), sums[-1].tolist())]
            suggested.sort(key=lambda entry: -abs(entry[2]))
            before = next(steered.steer(())).before[0]
        opened = Opened(name, label, image, codes, steered, suggested[:_SUGGESTED])
        with self._lock:
            self._number += 1
            number = str(self._number)
            self._opened[number] = opened
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        return {
            "image": number,
            "name": name,
            "label": label,
            "picture": address_of(run.pixels(image)),
            "probabilities": before.tolist(),
            "suggested": opened.suggested,
        }

    def _get(self, number: str) -> Opened:
        with self._lock:
            if number not in self._opened:
                raise UserError("this image is no longer at hand: drop or pick it again")
            self._opened.move_to_end(number)
            return self._opened[number]

    def page(self, number: str) -> dict[str, Any]:
        """An opened image's page: the data of the report's page of an image.

        Raises:
            UserError: no such image.
        """
        opened = self._get(number)
        with self.turns.now():
            return image_page_data(self.run, opened.image, opened.name, opened.label)

    def codes(self, number: str, features: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Some features' codes on an opened image: `max`, and `map (P,)`, [CLS] first.

        Raises:
            UserError: no such image or feature.
        """
        opened, clt, out = self._get(number), self.run.transcoder, []
        for layer, feature in features:
            if not (0 <= layer < clt.n_layers and 0 <= feature < clt.n_features):
                raise UserError(
                    f"feature {layer}/{feature} does not exist: layers 0..{clt.n_layers - 1}, features "
                    f"0..{clt.n_features - 1}"
                )
            pairs, values = opened.codes.layer(layer)
            here = pairs.features == feature
            row = torch.zeros(self.run.clip.n_positions)
            row[pairs.tokens[here].cpu()] = values[here].float().cpu()
            out.append({"max": float(row[row.abs().argmax()]), "map": row.tolist()})
        return out

    # -- steering ----------------------------------------------------------------------------------------------------
    def steer(self, number: str, edits: Sequence[Edit], tokens: str, base: str) -> dict[str, Any]:
        """Probabilities of an opened image before and after edits.

        Raises:
            UserError: no such image or feature, too many edits, or values that are none.
        """
        opened = self._get(number)
        with self.turns.now():
            part = next(opened.steered.steer(_few(edits), tokens, base))
        return {"before": part.before[0].tolist(), "after": part.after[0].tolist()}

    def flips(self, edits: Sequence[Edit], tokens: str, base: str) -> Iterator[dict[str, Any]]:
        """What the edits do to the stored images, as far as it is known; a newer call ends an older one.

        Yields:
            `done` and `images`; the `flips` since the last time: stored image, most probable class and its
            probability before and after; at the end `mean` `(classes,)` change of probability, and `top1` before and
            after.

        Raises:
            UserError: as `steer`.
        """
        with self._lock:
            self._round += 1
            mine = self._round
        parts = self.stored.steer(_few(edits), tokens, base)
        change = torch.zeros(len(self.classnames), dtype=torch.float64)
        hits, labelled, done = [0, 0], 0, 0
        while True:
            with self.turns.later():
                part = None if self._round != mine else next(parts, None)
            if self._round != mine:
                return
            if part is None:
                break
            best = [p.argmax(1).tolist() for p in (part.before, part.after)]
            change += (part.after - part.before).sum(0)
            flips = []
            for at, (n, was, now) in enumerate(zip(part.rows, *best)):
                if self.labels[n] >= 0:
                    labelled += 1
                    hits[0] += was == self.labels[n]
                    hits[1] += now == self.labels[n]
                if was != now:
                    flips.append([n, was, float(part.before[at, was]), now, float(part.after[at, now])])
            done = part.rows.stop
            yield {"done": done, "images": len(self.stored), "flips": flips}
        yield {
            "done": done,
            "images": len(self.stored),
            "flips": [],
            "mean": (change / max(done, 1)).tolist(),
            "top1": [hit / labelled for hit in hits] if labelled else None,
        }

    # -- circuits ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def intervene(self, number: str, sets: Sequence[NodeSet], targets: Sequence[str]) -> dict[str, Any]:
        """What changing nodes of an opened image does in the live model, each set by itself.

        Args:
            number: of the image.
            sets: what is changed.
            targets: what is read, as `Target.parse` reads it.

        Returns:
            `before` `(targets,)`; `observed` and `predicted` (by the moved tower) `(sets, targets)`, changes; `top` and
            `probability` `(sets,)`: the most probable class then.

        Raises:
            UserError: no such image, node or class, too many nodes, or a transcoder that is not in the place of MLPs.
        """
        opened, run = self._get(number), self.run
        for nodes in sets:
            if len(nodes) > MOST_NODES:
                raise UserError(f"{len(nodes)} nodes in a set: at most {MOST_NODES} are changed at once")
        scale = run.clip.logit_scale
        wanted = [Target.parse(self.head, self.classnames, name, scale, run.clip) for name in targets]
        with self.turns.now():
            if opened.circuit is None:
                opened.circuit = model_of_image(run.clip, run.transcoder, opened.image, skip="through")
            model = opened.circuit
            found = intervene_on(model, sets, "live", wanted, codes=False)
            after = embed_stream(model.parts, rerun(model, sets, "live", codes=False).final)
            chances, best = (scale * after.to(self.head) @ self.head).softmax(1).max(1)
        return {
            "before": found.before.tolist(),
            "observed": found.observed.tolist(),
            "predicted": found.predicted["moved"].tolist(),
            "top": best.tolist(),
            "probability": chances.tolist(),
        }

    # -- phrases -----------------------------------------------------------------------------------------------------
    def search(self, phrase: str) -> dict[str, Any]:
        """Stored images and features nearest to a phrase, see `PhraseSearch.find`.

        Raises:
            UserError: a phrase that cannot be read.
        """
        with self.turns.now():
            if self._search is None:
                self._search = self._make_search()
            return self._search.find(phrase)

    @torch.no_grad()
    def _make_search(self) -> PhraseSearch:
        run, source = self.run, self.source
        parts = [torch.stack(self._pixels[i : i + _BATCH]) for i in range(0, len(self._pixels), _BATCH)]
        seen = [observe(run.clip, self._normalised(part).to(run.clip.device)) for part in parts[:1]]
        embeddings = [run.clip.encode_image(self._normalised(part)).cpu() for part in parts]
        features = None if source is None else source.features
        words = [] if features is None else list(features.info["words"])
        return PhraseSearch(
            run,
            self.keys,
            torch.cat(embeddings) if embeddings else torch.zeros(0, run.clip.embed_dim),
            seen[0] if seen else None,
            features,
            None if source is None else source.retrieval,
            [*self.classnames, *words],
        )


def _few(edits: Sequence[Edit]) -> Sequence[Edit]:
    if len(edits) > MOST_EDITS:
        raise UserError(f"{len(edits)} features at once: at most {MOST_EDITS} are moved")
    return edits
