"""Gradient memory is kept between steps, and never handed out twice."""

from __future__ import annotations

import copy
import pickle

import torch

from clt_lightning.transcoder import AuxiliaryRequest, TopK
from clt_lightning.transcoder.buffers import GradientBuffers
from tests.transcoder.conftest import MakeCLT


def test_memory_comes_back_when_it_is_free() -> None:
    buffers, like = GradientBuffers(), torch.empty(3, 4, 5).transpose(0, 1)
    first = buffers.take("W", like)
    assert first.shape == like.shape
    assert first.stride() == like.stride()
    address = first.data_ptr()
    assert buffers.take("other", like).data_ptr() != address
    view = first[0]
    del first
    assert buffers.take("W", like).data_ptr() != address, "a view is still out"
    second = buffers.take("W", like)
    kept = second.data_ptr()
    del view, second
    assert buffers.take("W", like).data_ptr() == kept
    assert buffers.take("W", like.double()).dtype == torch.float64


def test_copies_have_buffers_of_their_own() -> None:
    buffers = GradientBuffers()
    out = buffers.take("W", torch.empty(3))
    for other in (copy.deepcopy(buffers), pickle.loads(pickle.dumps(buffers))):
        assert other.take("W", torch.empty(3)).data_ptr() != out.data_ptr()


def test_steps_reuse_memory_and_leave_kept_gradients_alone(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=TopK(4), backend="sparse", n_features=64)
    x = torch.randn(3, 11, 8, dtype=torch.float64)

    def backward() -> list[torch.Tensor]:
        clt(x).y_hat.sin().sum().backward()
        return [W.grad for W in (*clt.W_enc, *clt.W_dec)]

    addresses = [g.data_ptr() for g in backward()]
    clt.zero_grad(set_to_none=True)
    held = backward()
    assert [g.data_ptr() for g in held] == addresses
    before = [g.clone() for g in held]
    clt.zero_grad(set_to_none=True)
    fresh = backward()  # the last ones are still held by us
    assert all(torch.equal(a, b) for a, b in zip(held, before))
    assert all(torch.equal(a, b) for a, b in zip(fresh, before))
    doubled = backward()  # accumulated into the gradients that are there
    assert all(torch.equal(a, 2 * b) for a, b in zip(doubled, before))


def test_auxiliary_features_share_the_pass(make_clt: MakeCLT) -> None:
    """AuxK adds tokens to the decoder's one pass: every weight gets one gradient, nothing is added up afterwards."""
    clt = make_clt(activation=TopK(4), backend="sparse", n_features=64)
    request = AuxiliaryRequest(torch.arange(64).expand(3, 64) % 3 == 0, 5, torch.tensor([2, 4, 4]))
    out = clt(torch.randn(3, 11, 8, dtype=torch.float64), auxiliary=request)
    assert out.auxiliary is not None
    assert out.auxiliary.shape == (3, 3, 8)
    names = set()
    todo = [(out.y_hat.sum() + out.auxiliary.sum()).grad_fn]
    nodes = []
    while todo:
        node = todo.pop()
        if node is not None and node not in names:
            names.add(node)
            nodes.append(type(node).__name__)
            todo += [parent for parent, _ in node.next_functions]
    assert nodes.count("_DecodePairsBackward") == 1
    assert nodes.count("_EncodePairsBackward") == clt.n_layers
