"""What a study of amplification says of its memory before it starts, held against what is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.amplify import Amplifier, GateBy, memory_of, training_bytes
from clt_lightning.analysis.amplify.places import Observed, Seen
from clt_lightning.analysis.amplify.store import Store, mean_of, parts
from clt_lightning.analysis.amplify.training import read_training
from clt_lightning.analysis.forward_memory import forward_bytes
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.allocated import peak_bytes

from .world import FEATURES, WIDTH, make_clt

pytestmark = pytest.mark.filterwarnings("ignore:this CLIP has random weights")


def stream(layers: list[int]) -> CrossLayerTranscoder:
    sites = cl.Sites("resid_post", layers=layers)
    return cl.CrossLayerTranscoder(len(layers), WIDTH, FEATURES, cl.AbsTopK(6), "sae", sites=sites, seed=1).eval()


class Quick(Amplifier):
    """Says something of images without a forward pass."""

    def observe(self, images: Tensor) -> Observed:
        n, width = len(images), self.clt.d_out
        seen = []
        for place in self.places:
            y = torch.randn(len(place.targets), n, width)
            seen.append(Seen(y[0], y, torch.ones(n, 1), lambda y=y: (y, 0.9 * y)))  # type: ignore[misc]
        return Observed(seen, F.normalize(torch.randn(n, self.clip.embed_dim), dim=1), None)


def batches(n: int, of: int = 250) -> Iterator[dict[str, Tensor]]:
    for _ in range(0, n, of):
        yield {"image": torch.zeros(of, 1), "label": torch.zeros(of, dtype=torch.int64)}


@pytest.mark.parametrize("gate_by", ["fvu", "domain"])
@pytest.mark.parametrize("kind", [lambda: stream([2]), lambda: stream([0, 1, 2]), make_clt], ids=["last", "all", "clt"])
def test_training_images_take_what_is_said(
    clip: FrozenCLIP, kind: Callable[[], CrossLayerTranscoder], gate_by: GateBy
) -> None:
    amplifier, n = Quick(clip, kind()), 20_000
    head = torch.randn(clip.embed_dim, 3)
    took = peak_bytes(lambda: read_training(amplifier, batches(n), head, total=n, gate_by=gate_by))
    assert 0.75 < took / training_bytes(amplifier, n, gate_by) < 1.15


def test_a_forward_pass_takes_what_is_said(clip: FrozenCLIP) -> None:
    images = torch.randn(256, 3, clip.image_size, clip.image_size)
    took = peak_bytes(lambda: clip.encode_image(images)) + 3 * images.nbytes  # these, one by one and those before
    # said of the whole process, whose heap is larger than its tensors, and of the activation that takes most
    assert 0.5 < took / forward_bytes(clip, 256) < 1


def test_a_study_says_the_sum_of_its_parts(clip: FrozenCLIP) -> None:
    amplifier = Amplifier(clip, stream([2]))
    said = [memory_of(amplifier, 10, batch=n, classes=2, probe=False) for n in (64, 256)]
    assert said[1] - said[0] >= forward_bytes(clip, 256) - forward_bytes(clip, 64)
    # twice the training images, twice their part
    one, two, four = (memory_of(amplifier, n, batch=8, classes=2, probe=False) for n in (10**6, 2 * 10**6, 4 * 10**6))
    assert (four - two) / (two - one) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("total", [None, 7, 10, 12])
def test_rows_come_back_as_they_came(total: int | None) -> None:
    rows = torch.arange(30.0).view(10, 3)
    store = Store(total)
    for part in rows.split(4):
        store.add("x", part)
    assert "x" in store
    assert torch.equal(store.take("x"), rows)
    assert "x" not in store


def test_rows_of_a_known_number_have_one_place_from_the_start() -> None:
    store = Store(1000)
    store.add("x", torch.ones(1, 50))
    first = store._rows["x"].data_ptr()
    for _ in range(111):
        store.add("x", torch.ones(9, 50))
    whole = store.take("x")
    assert (whole.data_ptr(), len(whole)) == (first, 1000)


def test_a_pass_in_parts_is_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clt_lightning.analysis.amplify.store.NUMBERS", 20)
    rows, more = torch.randn(17, 2, 3), torch.randn(17, 2)
    some = list(parts(rows, more))
    assert [len(part) for part, _ in some] == [3] * 5 + [2]
    assert torch.equal(torch.cat([part for _, part in some]), more)
    torch.testing.assert_close(mean_of(rows), rows.double().mean(0))
