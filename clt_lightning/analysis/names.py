"""Names for features: the class that they stand for, and the words whose CLIP text embedding is nearest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.tokenizer import unknown_words
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import lines_of, read_text
from clt_lightning.core.paths import expand
from clt_lightning.core.say import doubt

N_NAMES = 5
WORD_TEMPLATES = ("{c}", "a photo of {c}")


#: What a feature is called: nothing, a class, or what it is where no class fits
KINDS = ("none", "class", "dense", "position")
#: A class gives its name where the feature's images hold it at least so many times as often as all images, for sure
LIFT = 2.0
#: ... and is among so many of them: of one image any of many classes has a large lift
IMAGES = 5
#: Share of the tokens above which a feature without a class is called dense
DENSE = 0.1
#: A feature without a class is called a position's where its firings at patches spread over so small a share of them
FEW_POSITIONS = 0.25
#: ... and there are at least so many
FIRINGS = 20


def label_features(class_images: Tensor, class_total: Tensor, patches: Tensor, frequency: Tensor) -> dict[str, Tensor]:
    """Gives each feature a class, or says why it has none.

    The lift of a class is its share among the labelled images on which the feature is active, over its share among all
    labelled images. Its interval is Wilson's, widened so that all classes' hold together with 95 % (Bonferroni): the
    most lifted of many classes would otherwise be chance.

    Args:
        class_images: `(F, C)` images of each class on which each feature is active.
        class_total: `(C,)` images of each class.
        patches: `(F, patches)` firings at each patch.
        frequency: `(F,)` share of tokens on which it is active.

    Returns:
        `name_kind (F,)` an index of `KINDS`; `lift_class (F,)` the class whose lift is largest for sure, -1 without;
        `lift`, `lift_low`, `lift_high` `(F,)`; `position_spread (F,)` effective number of patch positions, as a share.
    """
    n_features, n_classes = class_images.shape
    kind = torch.zeros(n_features, dtype=torch.int32)
    best = torch.full((n_features,), -1, dtype=torch.int32)
    lift, low, high = torch.full((3, n_features), torch.nan, dtype=torch.float64)
    own = torch.zeros(n_features)
    total = float(class_total.sum())
    if n_classes > 1 and total:
        prior = class_total.double() / total
        n = class_images.sum(1, keepdim=True).double()
        z = float(torch.special.ndtri(torch.tensor(1 - 0.025 / n_classes, dtype=torch.float64)))
        share = class_images.double() / n
        centre, width = (share + z * z / (2 * n)), z * (share * (1 - share) / n + z * z / (4 * n * n)).sqrt()
        scale = (1 + z * z / n) * prior.clamp(min=1e-300)
        lows = ((centre - width) / scale).where((n > 0) & (prior > 0), torch.tensor(-1.0, dtype=torch.float64))
        chosen = lows.argmax(1, keepdim=True)
        active = n[:, 0] > 0
        own = class_images.gather(1, chosen)[:, 0]
        best = chosen[:, 0].int().where(active, torch.tensor(-1, dtype=torch.int32))
        for out, values in ((lift, share / prior), (low, lows), (high, (centre + width) / scale)):
            out.copy_(values.gather(1, chosen)[:, 0].where(active, torch.nan))
    patches = patches.double()
    firings = patches.sum(1)
    shares = patches / firings.clamp(min=1)[:, None]
    spread = (-torch.special.xlogy(shares, shares).sum(1)).exp() / max(patches.shape[1], 1)
    kind[(firings >= FIRINGS) & (spread < FEW_POSITIONS)] = KINDS.index("position")
    kind[frequency > DENSE] = KINDS.index("dense")
    kind[(low >= LIFT) & (own >= IMAGES)] = KINDS.index("class")
    spread = spread.where(firings > 0, torch.nan)
    return {
        "name_kind": kind,
        "lift_class": best,
        "lift": lift,
        "lift_low": low,
        "lift_high": high,
        "position_spread": spread,
    }


def nearest_texts(direction: Tensor, texts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The texts nearest to each feature's mean image direction.

    Both sides are taken relative to their own mean: all CLIP images share a direction, all texts another one, and the
    gap between them says nothing.

    Args:
        direction: `(F, embed_dim)` unit.
        texts: `(texts, embed_dim)`; None gives padding.

    Returns:
        `(F, 5)` int32 indices (-1 padding) and float32 cosines.
    """
    index = torch.full((len(direction), N_NAMES), -1, dtype=torch.int32)
    score = torch.zeros(len(direction), N_NAMES)
    if texts is None or len(texts) < 2:
        return index, score
    wide = texts.detach().cpu().double()
    centred = F.normalize(wide - wide.mean(0), dim=-1)
    best = (direction @ centred.T).topk(min(N_NAMES, len(texts)), 1)
    index[:, : best.values.shape[1]] = best.indices.int()
    score[:, : best.values.shape[1]] = best.values.float()
    return index, score


def read_words(path: str | Path | None) -> list[str]:
    """Words to name features by: a file's lines, or the package's own list.

    Raises:
        UserError: no such file, one that is not UTF-8, or an empty one.
    """
    if path is None:
        text = (files("clt_lightning.analysis") / "words.txt").read_text(encoding="utf-8")
    else:
        text = read_text(expand(path, "features.words"))
    words = list(dict.fromkeys(lines_of(text, path or "words.txt", gaps=True)))
    if not words:
        raise UserError(f"features.words: {path!r} holds no word")
    return words


def known_words(clip: FrozenCLIP, words: Sequence[str], path: str | Path | None = None) -> list[str]:
    """The words that the text tower can read: a small vocabulary (the demo's) does not have them all.

    Args:
        clip: whose text tower.
        words: from `read_words`.
        path: the user's own file that they came from: what is left out of it is said.
    """
    unknown = dict.fromkeys(unknown_words(words, clip.tokenizer))
    if unknown and path is not None:
        shown = ", ".join(list(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        doubt(
            f"features.words: {len(unknown)} of the {len(words)} in {path} are left out, since the vocabulary of this "
            f"CLIP's text tower does not have them: {shown}"
        )
    return [word for word in words if word not in unknown]


def embed_words(clip: FrozenCLIP, words: Sequence[str]) -> Tensor | None:
    """`(words, embed_dim)` unit embeddings; None without words."""
    if not words:
        return None
    templates = [t for t in WORD_TEMPLATES if t == "{c}" or not unknown_words([t.replace("{c}", "")], clip.tokenizer)]
    return clip.embed_names(list(words), templates, what="words to name features by", unit="words")
