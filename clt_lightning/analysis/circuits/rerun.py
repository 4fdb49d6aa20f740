"""The image run again with nodes changed: everything held, codes read anew, or the live model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.forward import mixed
from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.nodeset import NodeEdit, NodeSet
from clt_lightning.analysis.circuits.parts import BlockParts
from clt_lightning.analysis.circuits.sources import add_written, encoder_rows, pre_activations
from clt_lightning.backbone.attention_parts import attention_pattern, values
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.pairs import Pairs

Mode = Literal["frozen", "reencoded", "live"]
MODES = ("frozen", "reencoded", "live")
Base = Literal["original", "transcoder"]
#: Codes held at once
_NUMBERS = 24_000_000


@dataclass(frozen=True)
class Rerun:
    """What came of it.

    Attributes:
        final: `(sets, positions, d_model)` the last stream.
        codes: `(sets, sources)` codes of the image's active features (`Sources.all_active`, layer after layer) in it,
            the changed ones as they were set; None if they were not asked for.
    """

    final: Tensor
    codes: Tensor | None


@torch.no_grad()
def rerun(model: ImageModel, sets: Sequence[NodeSet], mode: Mode, base: Base = "original", codes: bool = True) -> Rerun:
    """Run an image with nodes changed, each set by itself.

    A changed feature is pinned: its code is the value (`set`), or the value times the code that it has in the untouched
    image (`scale`), whatever reaches it.

    Args:
        model: the image, with the skip passed (`skip="through"`).
        sets: what is changed.
        mode: `frozen`: attention patterns, norm scales and which features fire are held; `reencoded`: patterns and
            scales are held, codes are read anew; `live`: nothing is held.
        base: of `live`: `original`: the backbone's own MLPs, plus the change of what the features write; `transcoder`:
            the transcoder in their place, with the image's own errors added.
        codes: whether codes are wanted; without them, `live` on `original` reads only what it changes.

    Raises:
        UserError: an unknown mode or base.
    """
    if mode not in MODES:
        raise UserError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if base not in ("original", "transcoder"):
        raise UserError(f"base must be original or transcoder, got {base!r}")
    per_set = model.parts.n_positions * (model.clt.n_features if mode != "frozen" else model.clt.d_model)
    rows = max(1, min(len(sets), _NUMBERS // per_set))
    parts = [_Run(model, sets[i : i + rows], mode, base, codes).go() for i in range(0, len(sets), rows)]
    found = [part.codes for part in parts if part.codes is not None]
    return Rerun(torch.cat([part.final for part in parts]), torch.cat(found) if found else None)


@dataclass
class _Run:
    """One forward of several sets at once."""

    model: ImageModel
    sets: Sequence[NodeSet]
    mode: Mode
    base: Base
    want_codes: bool

    def go(self) -> Rerun:
        model, like = self.model, self.model.image
        L, rows = model.clt.n_layers, len(self.sets)
        stream = model.seen.streams[0].expand(rows, -1, -1)
        #: by layer: tokens, features and what is decoded of them: codes, or their changes
        written: list[tuple[Tensor, Tensor, Tensor]] = []
        seen_codes = []
        live = self.mode == "live"
        own_mlps = live and self.base == "original"
        for layer in range(L):
            part, block = model.parts.blocks[layer], model.tower.blocks[layer]
            if live:
                middle = stream + live_attention(part, stream)
                x = part.norm_2(middle)
            else:
                middle = stream + block.attend(stream)
                x = block.read(middle)
            mlp = live_mlp(part, x) if own_mlps or (live and model.clt.topology == "sae") else None
            found = self._codes(layer, x, mlp, own_mlps)
            if self.want_codes:
                seen_codes.append(found.of_active)
            written.append((found.tokens, found.features, found.values))
            y = mlp.clone() if mlp is not None and own_mlps else self._rest(layer, x)
            y = self._with_other_nodes(layer, y)
            flat = y.reshape(-1, model.clt.d_model)
            for source in range(layer + 1):
                if model.clt.writes(source, layer):
                    add_written(flat, model.clt, source, layer, *written[source])
            stream = middle + flat.view_as(middle).to(like)
        return Rerun(stream, torch.cat(seen_codes, 1) if self.want_codes else None)

    def _rest(self, layer: int, x: Tensor) -> Tensor:
        """What is added in an MLP's place beside what features write: bias, skip, the image's own error."""
        model = self.model
        bias = model.clt.bias(layer, x).detach()
        return bias + model.tower.past_mlp(layer, x) + model.sources.errors[layer]

    def _with_other_nodes(self, layer: int, y: Tensor) -> Tensor:
        for row, nodes in enumerate(self.sets):
            for edit in nodes:
                if edit.layer != layer or edit.kind == "feature":
                    continue
                where = slice(None) if edit.position is None else slice(edit.position, edit.position + 1)
                errors = self.model.sources.errors[layer][where]
                part = errors if edit.kind == "error" else self.model.clt.bias(layer, y).detach()
                y[row, where] += (edit.value - 1) * part
        return y

    def _codes(self, layer: int, x: Tensor, mlp: Tensor | None, only_changes: bool) -> _Found:
        model = self.model
        active = model.sources.all_active[layer]
        P, F = model.parts.n_positions, model.clt.n_features
        rows = len(self.sets)
        edits = [[e for e in nodes if e.layer == layer and e.kind == "feature"] for nodes in self.sets]
        site = x
        if model.clt.topology == "sae":
            site = mlp if mlp is not None else model.tower.blocks[layer].mlp(x)
        nothing = torch.zeros(0, dtype=torch.int64, device=x.device)
        if only_changes and not self.want_codes and not any(edits):
            return _Found(nothing, nothing, x.new_zeros(0), x.new_zeros(rows, 0))
        dense: Tensor | None
        if self.mode == "frozen":
            dense, running = None, self._held_codes(layer, site)
        else:
            dense = self._encoded(layer, site)
            running = dense.view(rows, P, F)[:, active.positions, active.features]
        of_active = running.clone()
        clean = active.values
        lookup = (
            {(int(p), int(f)): i for i, (p, f) in enumerate(zip(active.positions, active.features))}
            if any(edits)
            else {}
        )
        extra: list[tuple[int, int, float]] = []  # token, feature, change, of pairs that the image does not have
        for row, mine in enumerate(edits):
            for edit in mine:
                for position in range(P) if edit.position is None else (edit.position,):
                    assert edit.feature is not None
                    at = lookup.get((position, edit.feature))
                    wanted = pinned_code(edit, 0.0 if at is None else float(clean[at]))
                    if at is not None:
                        of_active[row, at] = wanted
                        continue
                    now = 0.0 if dense is None else float(dense[row * P + position, edit.feature])
                    if wanted != now:
                        extra.append((row * P + position, edit.feature, wanted - now))
        tokens = (torch.arange(rows, device=x.device)[:, None] * P + active.positions).flatten()
        features = active.features.repeat(rows)
        if only_changes:
            amount = (of_active - running).flatten()
        elif dense is None:
            amount = of_active.flatten()
        else:
            tokens, features = dense.nonzero(as_tuple=True)
            amount = dense[tokens, features]
            extra += self._as_extra(of_active - running, active.positions, active.features)
        if extra:
            columns = [torch.tensor([e[i] for e in extra], device=x.device) for i in range(3)]
            tokens, features = torch.cat([tokens, columns[0]]), torch.cat([features, columns[1]])
            amount = torch.cat([amount, columns[2].to(amount)])
        some = amount != 0
        return _Found(tokens[some], features[some], amount[some], of_active)

    def _as_extra(self, change: Tensor, positions: Tensor, features: Tensor) -> list[tuple[int, int, float]]:
        P = self.model.parts.n_positions
        return [
            (row * P + int(positions[at]), int(features[at]), float(change[row, at]))
            for row, at in change.nonzero().tolist()
        ]

    def _held_codes(self, layer: int, site: Tensor) -> Tensor:
        """`(rows, active)` pre-activations of the features that fire in the image."""
        clt, active = self.model.clt, self.model.sources.all_active[layer]
        out = site.new_empty(len(site), len(active))
        for position in range(site.shape[1]):
            a, b = active.offsets[position], active.offsets[position + 1]
            if a < b:
                features = active.features[a:b]
                bias = clt.b_enc[layer].detach()[features].to(site)
                out[:, a:b] = site[:, position] @ encoder_rows(clt, layer, features, site).T + bias
        return out

    def _encoded(self, layer: int, site: Tensor) -> Tensor:
        """`(rows * positions, F)` codes."""
        clt = self.model.clt
        pre = pre_activations(clt, layer, site.flatten(0, 1))
        was = clt.activation.training
        try:
            clt.activation.eval()
            selected = clt.activation.select(pre, layer)
            pairs = selected if isinstance(selected, Pairs) else Pairs.from_mask(selected)
            codes = torch.zeros_like(pre)
            chosen = pre[pairs.tokens, pairs.features]
            codes[pairs.tokens, pairs.features] = clt.activation.values(chosen, pairs.features, layer)
        finally:
            clt.activation.train(was)
        return codes


@dataclass(frozen=True)
class _Found:
    """Codes (or changes of codes) of one layer: tokens, features, values; and those of the image's active features."""

    tokens: Tensor
    features: Tensor
    values: Tensor
    of_active: Tensor


def pinned_code(edit: NodeEdit, clean: float) -> float:
    """The code that an edit gives a feature, from the one that it has in the untouched image."""
    return edit.value if edit.action == "set" else edit.value * clean


def live_attention(part: BlockParts, stream: Tensor) -> Tensor:
    """What a block's attention adds, nothing held."""
    attention = part.attention
    normed = part.norm_1(stream)
    out = mixed(attention, values(attention, normed), attention_pattern(attention, normed))
    out = attention.out(out if attention.inner_norm is None else attention.inner_norm(out))
    out = out if part.post_attention is None else part.post_attention(out)
    return out if part.scale_1 is None else out * part.scale_1


def live_mlp(part: BlockParts, x: Tensor) -> Tensor:
    """What a block's MLP adds, nothing held."""
    active = part.mlp.activation(part.mlp.up(x))
    y = part.mlp.down(active if part.mlp.norm is None else part.mlp.norm(active))
    return y if part.scale_2 is None else y * part.scale_2
