"""What writes into the stream of one image, and what each row of gradients says it contributes.

Columns, in this order: every active feature at every position, sorted by layer, position and number; then errors and
(where they are nodes) skips, layer-major by position; the inputs at each position; the constants of each layer's
attention, MLP and read; the constant of the read-out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.circuits.linear import LinearTower, Step
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import Activation, CrossLayerTranscoder
from clt_lightning.transcoder.pairs import Pairs

#: Decoder rows gathered at once
_GATHERED = 1 << 14


@dataclass(frozen=True)
class Active:
    """The active features of one layer of one image, sorted by position and number.

    Attributes:
        positions: `(active,)` int64.
        features: `(active,)` int64.
        values: `(active,)` codes, in the tower's type.
        offsets: `(positions + 1,)`: position p owns `offsets[p]:offsets[p + 1]`.
    """

    positions: Tensor
    features: Tensor
    values: Tensor
    offsets: list[int]

    def __len__(self) -> int:
        return len(self.features)

    def keep(self, chosen: Tensor) -> Active:
        """Some of them."""
        return make_active(self.positions[chosen], self.features[chosen], self.values[chosen], len(self.offsets) - 1)


def make_active(positions: Tensor, features: Tensor, values: Tensor, n_positions: int) -> Active:
    """Active features in any order, sorted."""
    order = torch.argsort(positions * (int(features.max()) + 1 if len(features) else 1) + features)
    positions = positions[order]
    counts = torch.bincount(positions, minlength=n_positions)
    return Active(positions, features[order], values[order], [0, *counts.cumsum(0).tolist()])


@torch.no_grad()
def encode(clt: CrossLayerTranscoder, layer: int, site: Tensor) -> Active:
    """The codes of one layer of one image, in the type of what is read.

    Args:
        clt: the transcoder.
        layer: which layer.
        site: `(positions, d_model)` what its encoder reads.

    Raises:
        UserError: an activation whose codes are not the pre-activations: nothing linear makes them.
    """
    return active_of(clt.activation, layer, pre_activations(clt, layer, site))


@torch.no_grad()
def active_of(activation: Activation, layer: int, pre: Tensor) -> Active:
    """What an activation makes of the pre-activations `(positions, F)` of one layer of one image.

    Raises:
        UserError: an activation whose codes are not the pre-activations.
    """
    was = activation.training
    try:
        activation.eval()  # BatchTopK by its threshold, and nothing tracked
        selected = activation.select(pre, layer)
        pairs = selected if isinstance(selected, Pairs) else Pairs.from_mask(selected)
        active = pre[pairs.tokens, pairs.features]
        codes = activation.values(active, pairs.features, layer)
    finally:
        activation.train(was)
    fires = codes != 0
    if not torch.equal(codes[fires], active[fires]):
        raise UserError(
            f"the codes of {type(activation).__name__} are not the pre-activations of the features that fire: "
            f"no linear model makes them"
        )
    return make_active(pairs.tokens[fires], pairs.features[fires], active[fires], len(pre))


def pre_activations(clt: CrossLayerTranscoder, layer: int, site: Tensor) -> Tensor:
    """`(tokens, F)` of what an encoder reads, `(tokens, d_model)`, in its type."""
    scaled = site * clt.x_scale[layer].to(site)
    return F.linear(scaled, clt.W_enc[layer].detach().to(site), clt.b_enc[layer].detach().to(site))


def encoder_rows(clt: CrossLayerTranscoder, layer: int, features: Tensor, like: Tensor) -> Tensor:
    """`(features, d_model)`: how some features read what their encoder is given, without its bias."""
    rows = clt.W_enc[layer].detach()[features]
    result: Tensor = rows.to(like) * clt.x_scale[layer].to(like)
    return result


def decoder_rows(clt: CrossLayerTranscoder, layer: int, features: Tensor, target: int, like: Tensor) -> Tensor:
    """`(features, d_model)`: what code 1 of some features writes into a layer."""
    rows = clt.W_dec[layer].detach()[features, target - layer]
    result: Tensor = rows.to(like) * clt.y_scale[target].to(like)
    return result


def written_groups(clt: CrossLayerTranscoder, layer: int, features: Tensor) -> Tensor:
    """`(features, targets)` bool: which groups of some features' decoders are not exactly 0."""
    distinct, index = features.unique(return_inverse=True)
    there = [(clt.W_dec[layer].detach()[some] != 0).any(2) for some in distinct.split(_GATHERED)]
    result: Tensor = torch.cat(there)[index]
    return result


def skip_matrices(clt: CrossLayerTranscoder, like: Tensor) -> list[Tensor] | None:
    """`(d_model, d_model)` of each layer, from x to y in the backbone's units; None without a skip."""
    if clt.W_skip is None:
        return None
    scales = clt.x_scale.to(like) * clt.y_scale.to(like)
    return [W.detach().to(like) * scales[layer] for layer, W in enumerate(clt.W_skip)]


def add_written(
    out: Tensor, clt: CrossLayerTranscoder, layer: int, target: int, positions: Tensor, features: Tensor, codes: Tensor
) -> None:
    """Adds what codes write into a layer to `out (tokens, d_model)`, in place; `positions` are rows of it."""
    for start in range(0, len(features), _GATHERED):
        part = slice(start, start + _GATHERED)
        rows = decoder_rows(clt, layer, features[part], target, out)
        out.index_add_(0, positions[part], rows * codes[part, None])


class Sources:
    """All that writes into the stream of one image.

    Args:
        clt: the transcoder.
        tower: the linear tower of the image, whose `skips` are passed by the stream.
        skip_nodes: whether the skip's output is a node of its own (then the tower has no `skips`).
        reached: `(positions,)` bool: the positions from which the last stream is read.

    Attributes:
        active: the features that can reach the read-out, one `Active` per layer.
        errors: `(layers, positions, d_model)`: what the MLPs add, less what is rebuilt.
        written: `(layers, positions, d_model)`: what is rebuilt.
        n_features: columns of features.
        n_columns: all columns.

    The sum of a row over all columns is what its target is: a pre-activation or a logit.
    """

    def __init__(self, clt: CrossLayerTranscoder, tower: LinearTower, skip_nodes: bool, reached: Tensor) -> None:
        self.clt, self.tower, self.skip_nodes = clt, tower, skip_nodes
        seen = tower.seen
        self.like = seen.streams[0]
        L, P = tower.n_layers, self.like.shape[1]
        self.n_layers, self.n_positions = L, P
        sites = seen.y if clt.topology == "sae" else seen.x
        found = [encode(clt, layer, sites[layer][0]) for layer in range(L)]
        skips = skip_matrices(clt, self.like)
        self.skipped = None if skips is None else torch.stack([seen.x[i][0] @ skips[i].T for i in range(L)])
        rebuilt = []
        for layer in range(L):
            y = clt.bias(layer, self.like).detach().expand(P, -1).clone()
            for source in range(layer + 1):
                if clt.writes(source, layer):
                    a = found[source]
                    add_written(y, clt, source, layer, a.positions, a.features, a.values)
            rebuilt.append(y if self.skipped is None else y + self.skipped[layer])
        self.written = torch.stack(rebuilt)
        self.errors = torch.stack([seen.y[layer][0] for layer in range(L)]) - self.written
        # what the last layer writes elsewhere is never read
        self.all_active = found
        self.active = [*found[:-1], found[-1].keep(reached[found[-1].positions])]
        self._written = [written_groups(clt, layer, part.features) for layer, part in enumerate(self.active)]
        starts = [0]
        for part in self.active:
            starts.append(starts[-1] + len(part))
        self.starts, self.n_features = starts, starts[-1]
        self.errors_at = self.n_features
        self.skips_at = self.errors_at + L * P
        self.inputs_at = self.skips_at + (L * P if skip_nodes else 0)
        self.biases_at = self.inputs_at + P
        self.n_columns = self.biases_at + 3 * L + 1
        self._constants = [tower.constants(layer) for layer in range(L)]

    def layer_of(self, column: int) -> int:
        """The layer of a feature's column."""
        return next(layer for layer in range(self.n_layers) if column < self.starts[layer + 1])

    def feature_table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Layers, positions, features and codes of the features' columns."""
        layers = [torch.full_like(part.features, layer) for layer, part in enumerate(self.active)]
        columns = [torch.cat([getattr(a, name) for a in self.active]) for name in ("positions", "features", "values")]
        return torch.cat(layers), *columns  # type: ignore[return-value]

    def bias_column(self, layer: int, which: int) -> int:
        """The column of a layer's constant: 0 attention, 1 MLP, 2 read."""
        return self.biases_at + which * self.n_layers + layer

    @property
    def head_column(self) -> int:
        return self.n_columns - 1

    def add(self, step: Step, out: Tensor) -> None:
        """Adds what is contributed at one step of a backward to `out (rows, columns)`."""
        gradient, layer, P = step.gradient, step.layer, self.n_positions
        if step.place == "input":
            root = self.tower.seen.streams[0][0]
            out[:, self.inputs_at : self.biases_at] += torch.einsum("rpd,pd->rp", gradient, root)
        elif step.place == "attention":
            if self.tower.tangent:
                return  # what is constant is what is left of the row
            constant = self._constants[layer][0][0]
            out[:, self.bias_column(layer, 0)] += torch.einsum("rpd,pd->r", gradient, constant)
        else:
            at = self.errors_at + layer * P
            out[:, at : at + P] += torch.einsum("rpd,pd->rp", gradient, self.errors[layer])
            if self.skip_nodes:
                assert self.skipped is not None
                at = self.skips_at + layer * P
                out[:, at : at + P] += torch.einsum("rpd,pd->rp", gradient, self.skipped[layer])
            constant = self.clt.bias(layer, gradient).detach().expand(P, -1)
            if self.tower.skips is not None and not self.tower.tangent:
                constant = constant + self._constants[layer][1][0]
            out[:, self.bias_column(layer, 1)] += torch.einsum("rpd,pd->r", gradient, constant)
            self._add_features(layer, gradient, out)

    def _add_features(self, layer: int, gradient: Tensor, out: Tensor) -> None:
        for source in range(layer + 1):
            if not self.clt.writes(source, layer):
                continue
            part, begin = self.active[source], self.starts[source]
            chosen = self._written[source][:, layer - source].nonzero().flatten()
            ends = torch.searchsorted(chosen, torch.tensor(part.offsets, device=chosen.device)).tolist()
            for position in range(self.n_positions):
                some = chosen[ends[position] : ends[position + 1]]
                if not len(some):
                    continue
                rows = decoder_rows(self.clt, source, part.features[some], layer, gradient)
                added = (gradient[:, position] @ rows.T) * part.values[some]
                a, b = part.offsets[position], part.offsets[position + 1]
                out[:, slice(begin + a, begin + b) if len(some) == b - a else begin + some] += added

    def read_gradient(self, layer: int, gradient: Tensor) -> Tensor:
        """From gradients by what an encoder reads to those by its MLP's input, `(rows, positions, d_model)`."""
        return self.tower.blocks[layer].mlp_adjoint(gradient) if self.clt.topology == "sae" else gradient

    def pre_activations(self, layer: int, features: Tensor, positions: Tensor) -> Tensor:
        """`(reads,)` pre-activations in the image."""
        seen = self.tower.seen
        site = (seen.y if self.clt.topology == "sae" else seen.x)[layer][0, positions]
        bias = self.clt.b_enc[layer].detach()[features].to(site)
        return (site * encoder_rows(self.clt, layer, features, site)).sum(1) + bias

    def read_constants(self, layer: int, features: Tensor, positions: Tensor) -> Tensor:
        """`(reads,)`: what encoders' biases, and the constants of what they read, add to pre-activations."""
        block = self.tower.blocks[layer]
        site = block.read(torch.zeros_like(self.like))  # the norm's bias
        if self.clt.topology == "sae":
            site = block.mlp(site)
        rows = encoder_rows(self.clt, layer, features, self.like)
        return (rows * site[0, positions]).sum(1) + self.clt.b_enc[layer].detach()[features].to(self.like)
