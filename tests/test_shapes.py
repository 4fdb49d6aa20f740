"""The shapes in signatures: jaxtyping checks them while small examples run, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

HOOK = """
import inspect
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from clt_lightning.metrics import zero_shot
from clt_lightning.transcoder import AuxiliaryRequest, BatchTopK, CrossLayerTranscoder, JumpReLU, TopK
from clt_lightning.transcoder.decoders import SparseDecoders

checked = 0
for place in (CrossLayerTranscoder, SparseDecoders, zero_shot):
    for name, found in list(vars(place).items()):
        if inspect.isfunction(found) and "[Tensor, " in str(inspect.get_annotations(found)):
            inner = jaxtyped(inspect.unwrap(found), typechecker=beartype)
            setattr(place, name, inner if inspect.unwrap(found) is found else torch.no_grad()(inner))
            checked += 1
assert checked >= 18, checked
ranks_of, divergences = zero_shot.ranks_of, zero_shot.divergences
"""
RIGHT = """
for topology in ("cross_layer", "per_layer", "sae"):
    for activation in (TopK(3), JumpReLU(0.1), BatchTopK(3, cls_weight=4.0)):
        for backend in ("sparse", "dense"):
            skip = topology != "sae"
            clt = CrossLayerTranscoder(
                3, 8, 24, activation, topology, skip, backend, 0, d_out=None if not skip else 6, n_positions=5
            )
            clt.activation.not_tracking()
            x = torch.randn(3, 10, 8)
            clt(x).y_hat.sum().backward()
            request = AuxiliaryRequest(torch.ones(3, 24, dtype=torch.bool), 4, torch.arange(5))
            clt(x, auxiliary=request, cls=torch.tensor([0, 5]))
            codes = clt.encode(x)
            clt.decode(codes, x), clt.decode(codes.dense(), x), clt.decoder_norms(), clt.linear_part(x)
            clt.contributions(codes, 2), clt.code_gradients(codes, torch.randn(3, 10, clt.d_out))
            clt.rows(1, torch.tensor([1, 3]), 1), clt.fired(codes)
            clt.raise_biases(torch.zeros(3, 24, dtype=torch.bool), 0.1)
            layers = {i: clt.encode_layer(x[i], i) for i in range(3)}
            terms = clt.layer_terms(layers, 2)
            clt.layer_sum(layers, 2), clt.in_units(terms, x[2]), clt.rest_term(x[2], 2), clt.standardised(x)
cosines = torch.randn(4, 3)
ranks_of(cosines, torch.tensor([0, 1, -1, 2])), divergences(cosines, cosines)
print("right")
"""
WRONG = """
clt = CrossLayerTranscoder(2, 8, 16, TopK(3))
for n, call in enumerate((
    lambda: clt.skip_term(torch.randn(2, 4, 8), 0),
    lambda: clt.decode(torch.randn(2, 16)),
    lambda: clt.code_gradients(clt.encode(torch.randn(2, 4, 8)), torch.randn(4, 8)),
    lambda: ranks_of(torch.randn(4, 3), torch.tensor([1, 2, 0])),
    lambda: clt.raise_biases(torch.zeros(2, 16), 0.1),
)):
    try:
        call()
    except TypeCheckError:
        continue
    raise SystemExit(f"{n} is not noticed")
print("wrong")
"""


def test_what_runs_has_the_shapes_that_signatures_say() -> None:
    done = subprocess.run([sys.executable, "-c", HOOK + RIGHT + WRONG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["right", "wrong"]
