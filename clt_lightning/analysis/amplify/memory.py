"""How much main memory a study of amplification takes beside the models, told before it starts."""

from __future__ import annotations

from clt_lightning.analysis.amplify.gate import GateBy
from clt_lightning.analysis.amplify.places import Amplifier
from clt_lightning.analysis.amplify.store import NUMBERS
from clt_lightning.analysis.amplify.training import BLOCK
from clt_lightning.analysis.forward_memory import ONCE, forward_bytes

#: Prompts that are encoded at once, and what each takes in numbers of the embedding's size: ten tokens or so, eleven
#: tensors of the stream's size alive
_PROMPTS, _PROMPT = 512, 110


def training_bytes(amplifier: Amplifier, images: int, gate_by: GateBy = "fvu") -> int:
    """The most main memory that training images take in `read_training` (a second backbone's embeddings come on top).

    `4 x images x (targets x d_out + places x d_out + embed_dim)` bytes of what is kept, a few passes over a part of
    it, and of a gate by domain `targets` maps `d_out x d_out`.
    """
    width, targets, places = amplifier.clt.d_out, len(amplifier.targets), len(amplifier.places)
    kept = images * ((targets + places) * width + amplifier.clip.embed_dim + 4 + 4 * targets)
    passing = (3 if gate_by == "domain" else 2) * min(NUMBERS, images * targets * width)
    maps = (2 * targets + 8) * width**2 if gate_by == "domain" else 0
    return 4 * (kept + passing + maps)


def memory_of(
    amplifier: Amplifier,
    images: int,
    batch: int,
    classes: int,
    prompts: int = 0,
    neighbours: int = 50,
    gate_by: GateBy = "fvu",
    probe: bool = True,
) -> int:
    """Bytes at the height of it, about: of one process, beside the models and the processes that load images.

    Args:
        amplifier: where codes are amplified.
        images: training images.
        batch: images at once.
        classes: that images are told into.
        prompts: for each class, of the largest head that is made of them.
        neighbours: training images that an image is compared with.
        gate_by: what the gate goes by.
        probe: whether a linear probe is fitted.
    """
    clip = amplifier.clip
    stream = 0 if amplifier.at_end else 4 * 2 * batch * clip.n_positions * clip.d_model
    gathered = 2 * min(BLOCK, batch * neighbours * clip.d_model) + 2 * min(BLOCK, batch * images)
    arms = forward_bytes(clip, batch) + stream + 4 * gathered
    text = 4 * min(_PROMPTS, classes * prompts) * _PROMPT * clip.embed_dim
    fitted = 4 * images * (3 * clip.embed_dim + 4 * classes) if probe else 0
    return ONCE + training_bytes(amplifier, images, gate_by) + max(arms, text, fitted)
