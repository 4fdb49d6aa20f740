"""Encoding: which features of each layer fire on a token, and how strongly."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clt_lightning.transcoder.activations import Activation
from clt_lightning.transcoder.buffers import GradientBuffers
from clt_lightning.transcoder.codes import Pairs
from clt_lightning.transcoder.requests import AuxiliaryRequest, EncodedLayer
from clt_lightning.transcoder.sparse import encode_pairs, pair_dots

Backend = Literal["auto", "sparse", "dense"]

#: Below this share of active features the sparse path is the faster one (docs/performance.md): a CPU's matrix products
#: are slow, a GPU's tensor cores are not
SPARSE_BELOW = defaultdict(lambda: 0.25, cuda=0.01)


def _entries(pre: Tensor, pairs: Pairs) -> Tensor:
    """`(pairs,)`: the entries of `pre (tokens, F)` at the pairs."""
    if pairs.is_rectangular:
        return pre.gather(1, pairs.features.view(pairs.n_tokens, -1)).view(-1) if pairs.n_tokens else pre.new_zeros(0)
    return pre[pairs.tokens, pairs.features]


class SparseEncoders(nn.Module):
    """One sparse encoder a layer, `z[l] = activation(W_enc[l] x[l] + b_enc[l])`: the half of a transcoder that reads.

    The product with `W_enc` runs over all features without gradients; only what fires (and what AuxK asks for) gets
    one, unless codes are so many that the dense path is the faster one.

    Attributes:
        n_layers: L.
        W_enc: one `(F, d_model)` a layer.
        b_enc: `(layers, F)`.
        activation: which pre-activations become codes.
        backend: `auto` chooses the sparse path by density, `sparse` and `dense` force one.
        gradients: memory for the weights' gradients.
    """

    n_layers: int
    W_enc: nn.ParameterList
    b_enc: nn.Parameter
    activation: Activation
    backend: Backend
    gradients: GradientBuffers

    def _encode(
        self,
        scaled: Tensor,
        low: torch.dtype | None,
        want_pre: bool = False,
        auxiliary: AuxiliaryRequest | None = None,
    ) -> list[EncodedLayer]:
        layers, scratch = range(self.n_layers), None
        if not want_pre and low is None and self._surely_sparse(scaled.device.type):
            # one buffer serves all layers: what is chosen from it is copied out
            scratch = scaled.new_empty(scaled.shape[1], self.W_enc[0].shape[0])
        return [self._encode_layer(scaled[i], i, low, want_pre, auxiliary, scratch) for i in layers]

    def _encode_layer(
        self,
        x: Tensor,
        layer: int,
        low: torch.dtype | None,
        want_pre: bool = False,
        auxiliary: AuxiliaryRequest | None = None,
        scratch: Tensor | None = None,
    ) -> EncodedLayer:
        W, b, x = self.W_enc[layer], self.b_enc[layer], self._encoder_input(x)
        dense_gradient = want_pre or not self._surely_sparse(x.device.type)
        with torch.set_grad_enabled(torch.is_grad_enabled() and dense_gradient):
            if low is not None:
                pre = F.linear(x.to(low), W.to(low)).to(x.dtype) + b
            elif scratch is not None:
                pre = torch.addmm(b.detach(), x.detach(), W.detach().t(), out=scratch)
            else:
                pre = F.linear(x, W, b)
        known = pre.detach()
        selected = self._select(known, layer)
        dead = None if auxiliary is None else self._select_dead(known, layer, auxiliary)
        if self._use_dense(selected, pre, want_pre):
            return self._encode_densely(pre, selected, layer, auxiliary, dead)
        pairs = selected if isinstance(selected, Pairs) else Pairs.from_mask(selected)
        n_active = pairs.features.numel()
        active = _entries(known, pairs)
        every, inputs = pairs, x
        if auxiliary is not None and dead is not None:
            active = torch.cat([active, known[auxiliary.tokens[dead.tokens], dead.features]])
            every, inputs = Pairs.cat(pairs, dead), torch.cat([x, x[auxiliary.tokens]])
        if low is not None:
            # the low-precision product only chooses: what is chosen is computed again in full precision
            with torch.no_grad():
                order, _ = every.by_feature
                exact = pair_dots(every, [W], [inputs])
                active = torch.empty_like(exact).index_copy_(0, order, exact) + b[every.features]
        active = encode_pairs(active, inputs, W, b, every, self.gradients, ("W_enc", layer))
        values = self.activation.values(active[:n_active], pairs.features, layer)
        return EncodedLayer(pairs, values, None, None if dead is None else (dead, torch.relu(active[n_active:])))

    def _encode_densely(
        self, pre: Tensor, selected: Pairs | Tensor, layer: int, auxiliary: AuxiliaryRequest | None, dead: Pairs | None
    ) -> EncodedLayer:
        if isinstance(selected, Pairs):
            mask = torch.zeros_like(pre, dtype=torch.bool)
            mask[selected.tokens, selected.features] = True
            selected = mask
        codes = torch.where(selected, self.activation.values(pre, None, layer), pre.new_zeros(()))
        if auxiliary is None or dead is None:
            return EncodedLayer(None, codes, pre)
        return EncodedLayer(None, codes, pre, (dead, torch.relu(pre[auxiliary.tokens[dead.tokens], dead.features])))

    def _encoder_input(self, x: Tensor) -> Tensor:
        """What this process's encoders read: x; where features are divided, with the gradients of all processes."""
        return x

    def _select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        return self.activation.select(pre, layer)

    def _select_dead(self, pre: Tensor, layer: int, request: AuxiliaryRequest) -> Pairs:
        """The dead features with the largest pre-activations, for each auxiliary token."""
        features = request.dead[layer].nonzero().flatten()
        found = pre[request.tokens[:, None], features]
        top = torch.topk(found, min(request.k, features.numel()), dim=1, sorted=False)
        return Pairs.rectangular(features[top.indices], pre.shape[1])

    def _surely_sparse(self, device_type: str) -> bool:
        """Whether the sparse path is taken whatever the data."""
        if self.backend != "auto":
            return self.backend == "sparse"
        bound = self.activation.most_active
        return bound is not None and bound < SPARSE_BELOW[device_type] * self.W_enc[0].shape[0]

    def _use_dense(self, selected: Pairs | Tensor, pre: Tensor, want_pre: bool) -> bool:
        if want_pre or self.backend == "dense":
            return True
        if self._surely_sparse(pre.device.type) or pre.numel() == 0:
            return False
        active = selected.features.numel() if isinstance(selected, Pairs) else int(selected.sum())
        return active >= SPARSE_BELOW[pre.device.type] * pre.numel()
