"""Which nodes each rule chooses, and curves of made arms with known areas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.circuits.faithful import FRACTIONS, Curves, Masks, by_edges, by_score, curves
from clt_lightning.analysis.circuits.faithful.curves import MEASURES, area
from clt_lightning.analysis.circuits.faithful.mlp_arms import MlpArms
from clt_lightning.analysis.circuits.faithful.selection import counts_of, random_scores
from clt_lightning.analysis.circuits.residual import ResidualArms
from tests.analysis import world
from tests.analysis.circuits.circuit_world import clip_of, clt_of
from tests.analysis.circuits.residual_world import made_baseline, sae_of


def test_counts() -> None:
    assert counts_of(FRACTIONS, 769) == [0, 1, 2, 4, 8, 16, 39, 77, 154, 385, 769]
    assert counts_of((0, 0.1, 1), 10) == [0, 1, 10]
    for wrong in ((0.1, 1), (0, 0.5), (0, 0.5, 0.5, 1), (0, 2, 1), (0,)):
        with pytest.raises(cl.UserError, match="ascend from 0 to 1"):
            counts_of(wrong, 10)


def test_the_edge_rule() -> None:
    nodes = torch.tensor([[9.0, 1.0, 0.0], [5.0, 0.0, 1.0], [1.0, 3.0, 2.0]])
    # layer 2's best is node 1, which reads nodes 1 and 2 of layer 1; these read nodes 1 and 0 of layer 0
    edges = [
        (torch.tensor([1, 2]), torch.tensor([[-8.0, 2.0, 0.0], [1.0, 0.0, 0.0]])),
        (torch.tensor([0, 1]), torch.tensor([[7.0, 0.0, 0.0], [-5.0, 2.0, 1.0]])),
    ]
    keep = by_edges(nodes, edges, [0, 1, 2, 3])
    assert not keep[0].any()
    assert keep[3].all()
    assert keep[1].tolist() == [[False, True, False], [False, True, False], [False, True, False]]
    # two of layer 2: nodes 1 and 2, and none reads anything as node 2; of layer 1 then 1 and 2, of layer 0 both
    assert keep[2].tolist() == [[True, True, False], [False, True, True], [False, True, True]]
    # between equals the node decides: nothing reaches layer 0 or 1 but by node
    ties = by_edges(nodes, [(torch.tensor([0]), torch.zeros(1, 3))] * 2, [1])
    assert torch.equal(ties, by_score(nodes, [1]))


def test_scores_and_random_orders() -> None:
    scores = torch.tensor([[1.0, 3.0, -2.0, 0.0]])
    assert by_score(scores, [0, 1, 3]).tolist() == [
        [[False] * 4],
        [[False, True, False, False]],
        [[True, True, False, True]],
    ]
    active = torch.tensor([[True, False] * 8, [False, True] * 8])
    drawn = by_score(random_scores(active, torch.Generator().manual_seed(0)), [8])
    assert torch.equal(drawn[0], active), "active nodes come first"
    a, b = (by_score(random_scores(active, torch.Generator().manual_seed(i)), [4]) for i in (0, 1))
    assert not torch.equal(a, b)


def test_areas() -> None:
    x = np.array([0, 0.01, 0.1, 1])
    ramp = np.array([[0, 0.01, 0.1, 1]])
    assert area(x, ramp, "linear") == pytest.approx([0.5])
    assert area(x, np.ones((1, 4)), "log") == pytest.approx([1.0])
    assert area(x, np.array([[5.0, 0, 1, 2]]), "log") == pytest.approx([1.0]), "0 is not on the log axis"
    # several fractions of a small layer may be the same number of nodes
    assert area(np.array([0, 0.5, 0.5, 1]), np.array([[0, 1.0, 1.0, 1.0]]), "linear") == pytest.approx([0.75])
    with pytest.raises(cl.UserError, match="linear, log"):
        area(x, ramp, "square")


def made(strengths: dict[str, float]) -> Curves:
    """Arms whose class's cosine rises as (share kept)^strength, by image times its number."""
    head = torch.eye(4)[:, :2]
    fractions = (0.0, 0.25, 0.5, 1.0)

    def arms(image: Tensor, label: int) -> dict[str, Masks]:
        amount = float(image.flatten()[0])

        def masks(strength: float) -> Masks:
            keep = by_score(torch.arange(4.0).expand(2, 4), counts_of(fractions, 4))

            def run(variants: Tensor) -> Tensor:
                share = variants.float().mean((1, 2)) ** strength * amount + 0.05
                out = torch.zeros(len(variants), 4)
                out[:, label] = share
                out[:, 2] = (1 - share**2).sqrt()
                return out

            active = torch.ones(2, 4, dtype=torch.bool)
            active[0] = False
            return Masks(keep, 4, run, active, torch.arange(4.0))

        return {name: masks(strength) for name, strength in strengths.items()}

    images = [(f"{i}", torch.full((3, 2, 2), 0.1 * (i + 1)), i % 2) for i in range(6)]
    return curves(arms, images, head, 10.0, fractions=fractions, draws=50)


def test_curves_of_made_arms() -> None:
    found = made({"early": 0.5, "even": 1.0})
    x = np.array([0, 0.25, 0.5, 1.0])
    for name, strength in (("early", 0.5), ("even", 1.0)):
        for measure in ("logit", "adjusted_logit"):
            wanted = area(x, x[None] ** strength, "linear")[0]
            inserted = found.auc(measure, "linear")["insertion"][name]
            assert inserted.value == pytest.approx(wanted, abs=1e-6)
            assert inserted.low == pytest.approx(wanted, abs=1e-6), "each image has the same normalised curve"
            # a deletion at share s keeps 1 - s
            deleted = found.auc(measure, "linear")["deletion"][name].value
            assert deleted == pytest.approx(area(x, (1 - x[None]) ** strength, "linear")[0], abs=1e-6)
        curve = found.normalised("insertion", "logit")[name]
        assert [p.value for p in curve] == pytest.approx(list(x**strength))
    ahead = found.ahead("early", "even", axis="linear")
    assert ahead.value == pytest.approx(found.auc("logit", "linear")["insertion"]["early"].value - 0.5, abs=1e-6)
    assert ahead.low > 0
    logits = found.arms["even"].table["insertion"][:, :, MEASURES.index("logit")]
    np.testing.assert_allclose(logits[2], 10 * (x * 0.3 + 0.05), rtol=1e-5)
    adjusted = found.arms["even"].table["insertion"][:, :, MEASURES.index("adjusted_logit")]
    np.testing.assert_allclose(adjusted, logits / 2, rtol=1e-5)
    probability = found.arms["even"].table["insertion"][:, :, MEASURES.index("probability")]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert found.arms["even"].active.tolist()[0] == [0, 1, 2, 4], "of one layer of two"
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["arms"]["early"]["insertion"]["logit"]["auc"]["linear"]["value"] == pytest.approx(
        found.auc("logit", "linear")["insertion"]["early"].value
    )
    assert content["arms"]["early"]["edges"] == [0, 1, 2, 3]
    with pytest.raises(cl.UserError, match="at least one image"):
        curves(lambda image, label: {}, [], torch.eye(2), 1.0)


@pytest.mark.parametrize("errors", ["node", "kept", "masked"])
def test_arms_of_the_residual_model(errors: str) -> None:
    clip, sae = clip_of("plain"), sae_of("BatchTopK")
    head = torch.nn.functional.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    names = [f"class {i}" for i in range(5)]
    baseline = made_baseline(clip, sae)
    generator = torch.Generator().manual_seed(2)
    shape = (world.LAYERS, world.POSITIONS, world.WIDTH)
    own = type(baseline)("mean", torch.randn(shape, generator=generator) * 0.1, torch.zeros(shape), 1)
    fractions = (0.0, 0.1, 0.4, 1.0)
    arms = ResidualArms(clip, sae, baseline, head, names, dimensions=own, errors=errors, fractions=fractions)  # type: ignore[arg-type]
    images = [(f"{i}", world.Images([i])[0]["image"], i % 5) for i in range(3)]
    found = curves(arms, images, head, 100.0, fractions=fractions, draws=20)
    assert set(found.arms) == set(ResidualArms.words())
    logits = {i: 100 * (clip.encode_image(image)[0] @ head)[label] for i, (_, image, label) in enumerate(images)}
    n_nodes = world.FEATURES + (errors == "node")
    for name, arm in found.arms.items():
        assert arm.fractions[1] == pytest.approx(math.ceil(0.1 * found.n_nodes[name]) / found.n_nodes[name])
        assert found.n_nodes[name] == (world.WIDTH if name == "neurons" else n_nodes)
        inserted, deleted = (arm.table[mode][:, :, 0] for mode in ("insertion", "deletion"))
        # all kept, and none deleted, is the untouched model; unless errors are not put back
        for i in range(3):
            same = inserted[i, -1] == pytest.approx(float(logits[i]), abs=1e-3)
            assert same == (errors != "masked" or name == "neurons")
            assert deleted[i, 0] == pytest.approx(inserted[i, -1], abs=1e-3)
            assert deleted[i, -1] == pytest.approx(inserted[i, 0], abs=1e-3)
    # no two rules are the same
    tables = [arm.table["insertion"][:, 1:-1, 0] for arm in found.arms.values()]
    for i, one in enumerate(tables):
        assert all(np.abs(one - other).max() > 1e-3 for other in tables[:i])
    again = curves(
        ResidualArms(clip, sae, baseline, head, names, names=["random"], errors=errors, fractions=fractions),  # type: ignore[arg-type]
        images, head, 100.0, fractions=fractions, draws=20,
    )  # fmt: skip
    np.testing.assert_allclose(
        again.arms["random"].table["insertion"], found.arms["random"].table["insertion"], atol=1e-4
    )


def test_unknown_arms() -> None:
    clip, sae = clip_of("plain"), sae_of()
    with pytest.raises(cl.UserError, match=r"unknown arms.*magic.*edges_plain"):
        ResidualArms(clip, sae, made_baseline(clip, sae), torch.eye(16), list("abcdefghijklmnop"), names=["magic"])


@pytest.mark.parametrize("topology", ["cross_layer", "sae"])
def test_arms_of_transcoders_of_the_mlps(topology: str) -> None:
    clip, clt = clip_of("plain"), clt_of("TopK", topology, skip=topology == "cross_layer")
    head = torch.nn.functional.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    names = [f"class {i}" for i in range(5)]
    baseline = made_baseline(clip, clt)
    fractions = (0.0, 0.1, 0.3, 1.0)
    arms = MlpArms(clip, clt, baseline, head, names, fractions=fractions)
    images = [(f"{i}", world.Images([i])[0]["image"], i) for i in range(2)]
    found = curves(arms, images, head, 100.0, fractions=fractions, draws=20)
    assert set(found.arms) == {"graph", "nodes", "nodes_plain", "activation", "random"}, "no neurons without their own"
    for arm in found.arms.values():
        for i, (_, image, label) in enumerate(images):
            logit = float(100 * (clip.encode_image(image)[0] @ head)[label])
            assert arm.table["insertion"][i, -1, 0] == pytest.approx(logit, abs=1e-3)
    tables = {name: arm.table["insertion"][:, 1:-1, 0] for name, arm in found.arms.items()}
    for name, one in tables.items():
        same = [other for other, table in tables.items() if other != name and np.abs(one - table).max() < 1e-3]
        assert not same, name


def test_node_scores_of_mlps_are_gradients_times_changes() -> None:
    """Plain gradients, against autograd through open_clip's own modules."""
    clip, clt = clip_of("plain"), clt_of(skip=True)
    head = torch.nn.functional.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    baseline = made_baseline(clip, clt)
    arms = MlpArms(clip, clt, baseline, head, list("abcde"), fractions=(0.0, 1.0))
    image = world.Images([3])[0]["image"]
    target = cl.Target.centred(head, list("abcde"), 2, 100.0)
    scores = arms._relevance(arms.model_of(image, target), plain=True)
    acts = clip.capture(image)
    codes = clt.encode(acts.x).dense().detach()
    changes = codes - baseline.codes
    shares = torch.zeros_like(changes, requires_grad=True)
    bent = [
        sum(shares[i] @ clt.W_dec[i].detach()[:, layer - i] * clt.y_scale[layer] for i in range(layer + 1))
        for layer in range(world.LAYERS)
    ]
    with clip.override("mlp_out", lambda layer, x, compute: compute() + bent[layer].view_as(x)):
        value = target.scale * clip.encode_image(image, grad=True)[0] @ target.direction
    (gradient,) = torch.autograd.grad(value, shares)
    torch.testing.assert_close(scores[:, :-1], (gradient * changes).sum(1), atol=2e-4, rtol=1e-3)
