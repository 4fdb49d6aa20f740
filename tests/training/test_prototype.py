"""The prototype term (PASS): codes of [CLS] near those of their class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.core.errors import UserError
from clt_lightning.training.losses import CascadeConfig, LossConfig, PrototypeConfig, loss_parts, prototype_spread
from clt_lightning.transcoder import Codes
from tests.training.test_loss_terms import batches, trainer
from tests.transcoder.conftest import MakeCLT


def by_hand(dense: Tensor, labels: Tensor, norms: Tensor) -> float:
    """With loops over layers and images."""
    total = 0.0
    for z in dense * norms[:, None]:
        for i, label in enumerate(labels.tolist()):
            mean = torch.stack([z[j] for j, other in enumerate(labels.tolist()) if other == label]).mean(0)
            total += float((z[i] - mean).square().sum()) / len(labels) / len(dense)
    return total


def test_the_spread_is_that_of_the_classes() -> None:
    torch.manual_seed(0)
    dense, norms = torch.randn(3, 7, 5).relu(), torch.rand(3, 5)
    labels = torch.tensor([2, 0, 2, 9, 0, 2, 4])
    for codes in (Codes.from_dense(dense), Codes([None] * 3, list(dense))):
        assert float(prototype_spread(codes, labels, norms)) == pytest.approx(by_hand(dense, labels, norms))
    alone = Codes.from_dense(dense[:, :3])
    assert float(prototype_spread(alone, torch.tensor([1, 2, 3]), norms)) == 0
    assert float(prototype_spread(Codes.from_dense(dense[:, :0]), labels[:0], norms)) == 0


def test_of_a_step_it_reads_labelled_cls_tokens_alone(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=cl.AbsTopK(3))
    x = torch.randn(3, 8, 8, dtype=torch.float64)
    positions, labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), torch.tensor([5, 5, 5, 5, 1, 1, -1, -1])
    with torch.no_grad():
        for W in clt.W_dec:
            W.normal_()
    out = clt(x)
    config = LossConfig(prototype=PrototypeConfig(0.8))
    found = loss_parts(config, clt, x, out, 0, labels=labels, positions=positions)["prototype"]
    chosen = torch.tensor([0, 2, 4])
    expected = by_hand(out.codes.dense()[:, chosen].detach(), labels[chosen], clt.decoder_norms().detach())
    assert float(found) == pytest.approx(0.8 * expected / clt.d_out)
    found.backward()
    assert any(float(W.grad.abs().sum()) > 0 for W in clt.W_enc if W.grad is not None)


def module_of(**options: Any) -> cl.CLTModule:
    transcoder = cl.TranscoderConfig(
        n_features=32, activation=cl.AbsTopK(4), topology="sae", sites=cl.Sites("resid_post", layers=[-1])
    )
    tokens = cl.TokensConfig(**{"set": "cls", "statistics": 4, **options})
    loss = LossConfig(cascade=CascadeConfig(0, 0), prototype=PrototypeConfig(50.0))
    return cl.CLTModule({"init_args": {"pretrained": "demo"}}, transcoder, loss, tokens=tokens, seed=0)


def test_it_trains_on_labels_and_refuses_data_without_them() -> None:
    run = trainer()
    run.fit(module_of(), batches(torch.tensor([3, 1, 3])))
    assert float(run.callback_metrics["train/loss/prototype"]) >= 0
    for label in (None, torch.full((3,), -1)):
        with pytest.raises(UserError, match=r"prototype needs the class.*prototype\.coefficient to 0"):
            trainer().fit(module_of(), batches(label))


def test_it_needs_cls() -> None:
    with pytest.raises(UserError, match=r"reads the codes of \[CLS\], and model.tokens.set is patch"):
        module_of(set="patch")
    vit = cl.FrozenViT("vit_tiny_patch16_224", pretrained=None)
    object.__setattr__(vit, "has_cls", False)
    loss = LossConfig(cascade=CascadeConfig(0, 0), prototype=PrototypeConfig(0.8))
    with pytest.raises(UserError, match=r"has none"):
        cl.CLTModule(vit, cl.TranscoderConfig(n_features=16), loss)
