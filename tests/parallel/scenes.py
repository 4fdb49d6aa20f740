"""What the processes of these tests do; importable, since they are started afresh."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from clt_lightning.parallel import ShardedTranscoder, Shards
from clt_lightning.parallel.selection import batch_winners, select_topk
from clt_lightning.parallel.state import cut_module, cut_optimizer, gather_module, gather_optimizer
from clt_lightning.training.losses import (
    AuxKConfig,
    L1Config,
    LossConfig,
    PreActivationConfig,
    PrototypeConfig,
    TanhConfig,
    loss_parts,
)
from clt_lightning.training.priors import GroupPruning, MultiStudy, SparseDecoding, WeightPrior
from clt_lightning.transcoder import AuxiliaryRequest, Codes, CrossLayerTranscoder, precision
from clt_lightning.transcoder.activations import from_config
from clt_lightning.transcoder.normalization import StatisticsAccumulator
from tests.gradients import gradient
from tests.parallel._outside import Shift, Squares

LAYERS, WIDTH, FEATURES, TOKENS = 3, 8, 48, 16
#: Images of two tokens each, [CLS] first, of three classes and without one
POSITIONS, LABELS = torch.arange(TOKENS) % 2, torch.tensor([0, 1, 2, 0, -1, 1, 0, 1]).repeat_interleave(2)


def batch(index: int) -> tuple[Tensor, Tensor]:
    """x and y of one step: y depends on x across layers."""
    generator = torch.Generator().manual_seed(1000 + index)
    x = torch.randn(LAYERS, TOKENS, WIDTH, generator=generator)
    mix = torch.randn(LAYERS, LAYERS, WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)) / WIDTH
    return x, torch.einsum("lnd,lmde->mne", torch.relu(x), mix) + 0.3


def build(config: dict[str, Any], shards: Shards | None) -> CrossLayerTranscoder:
    """A transcoder normalised with the first batches: whole, or this process's shard of it."""
    arguments = {"n_features": FEATURES, **config}
    arguments["activation"] = from_config(arguments["activation"])
    if shards is None:
        clt = CrossLayerTranscoder(LAYERS, WIDTH, seed=5, **arguments)
    else:
        clt = ShardedTranscoder(shards, LAYERS, WIDTH, seed=5, **arguments)
    sums = StatisticsAccumulator(LAYERS, WIDTH)
    sums.update(*batch(99))
    clt.normalize(sums.result())
    return clt


def losses_of(parts: bool, want_pre: bool) -> LossConfig:
    if not parts:
        return LossConfig(auxk=AuxKConfig(coefficient=0.0))
    return LossConfig(
        l1=L1Config(1e-2),
        tanh=TanhConfig(1e-2),
        pre_activation=PreActivationConfig(1e-3 if want_pre else 0.0),
        prototype=PrototypeConfig(0.3),
        auxk=AuxKConfig(0.1, k=5),
        extra=[Squares(), Shift()],
    )


def train(
    config: dict[str, Any],
    steps: int,
    feature: int,
    data: int = 1,
    parts: bool = False,
    start: dict[str, Any] | None = None,
    first: int = 0,
    want_pre: bool = True,
) -> dict[str, Any] | None:
    """Trains for some steps; gives losses, norms and the whole state, on the process that would write it.

    `parts` adds the other parts of the loss; the one on pre-activations, which needs the dense path, only
    with `want_pre`. `feature=0` is one plain process; the batch of a step is then what all data groups see together.
    """
    if feature:
        mesh = init_device_mesh("cpu", (data, feature), mesh_dim_names=("data", "feature"))
        replica = mesh.get_local_rank("data")
        shards = Shards.of_group(mesh.get_group("feature"), replica)
    else:
        shards, replica = None, 0
    clt = build(config, shards)
    optimizer = torch.optim.AdamW(clt.parameters(), lr=5e-3, weight_decay=0.01)
    start = copy.deepcopy(start)  # loading moments does not copy them
    if start is not None and isinstance(clt, ShardedTranscoder):
        clt.load_state_dict(cut_module(clt, start["state"], ""))
        optimizer.load_state_dict(cut_optimizer(clt, optimizer, start["optimizer"]))
    elif start is not None:
        clt.load_state_dict(start["state"])
        optimizer.load_state_dict(start["optimizer"])
    loss_config = losses_of(parts, want_pre)
    dead = torch.rand(LAYERS, FEATURES, generator=torch.Generator().manual_seed(3)) < 0.4
    dead[1] = False
    dead[2, FEATURES // 2 :] = False  # all of them at one of two processes
    request = AuxiliaryRequest(dead, 5, torch.arange(0, TOKENS, 3)) if parts else None
    losses, norms = [], []
    for step in range(first, first + steps):
        if feature:
            batches = [batch(step * data + replica)]
        else:
            batches = [batch(step * data + i) for i in range(data)]
        total: dict[str, float] = {}
        for x, y in batches:
            out = clt(x, want_pre=parts and want_pre, auxiliary=request)
            tokens = None if request is None else request.tokens
            found = loss_parts(loss_config, clt, y, out, step, tokens, labels=LABELS, positions=POSITIONS)
            (torch.stack(list(found.values())).sum() / len(batches)).backward()
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value.item() / len(batches)
        if feature and data > 1:
            for p in clt.parameters():
                dist.all_reduce(gradient(p), group=mesh.get_group("data"))
                gradient(p).div_(data)
            for name in total:
                mean = torch.tensor(total[name], dtype=torch.float64)
                dist.all_reduce(mean, group=mesh.get_group("data"))
                total[name] = mean.item() / data
        if isinstance(clt, ShardedTranscoder):
            clt.average_replicas()
            norms.append(clt.clip_grad_norm_(0.05).item())
        else:
            norms.append(nn.utils.clip_grad_norm_(clt.parameters(), 0.05).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    own_bytes = sum(p.numel() * p.element_size() for p in clt.parameters()) + sum(
        v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values()
    )
    if isinstance(clt, ShardedTranscoder):
        state, moments = gather_module(clt, clt.state_dict(), ""), gather_optimizer(clt, optimizer)
    else:
        state, moments = clt.state_dict(), optimizer.state_dict()
    return {"losses": losses, "norms": norms, "state": state, "optimizer": moments, "bytes": own_bytes}


def priors() -> dict[str, WeightPrior]:
    """Those on the groups, so that each has something to do in a few steps."""
    return {
        "sparse_decoding": SparseDecoding(0.4, start=0.0, warmup_fraction=0.3, refit=0.25),
        "until": SparseDecoding(0.4, start=0.0, warmup_fraction=0.3, refit=0.0, until=0.9),
        "pruning": GroupPruning(keep=0.6, start=0.2, refit=0.3, every=2),
    }


def with_prior(feature: int, name: str, steps: int = 12, folder: str | None = None) -> dict[str, Any]:
    """Trains with a prior on the groups. Decoders of all features, and the prior's state."""
    config = {"activation": {"class_path": "BatchTopK", "init_args": {"k": 4}}, "n_features": FEATURES}
    clt = build(config, Shards.of_group() if feature else None)
    prior = priors()[name]
    optimizer = torch.optim.Adam(clt.parameters(), lr=0.02)
    prior.attach(clt)
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        torch.stack(list(loss_parts(losses_of(False, False), clt, y, clt(x), step).values())).sum().backward()
        if isinstance(clt, ShardedTranscoder):
            clt.average_replicas()
        optimizer.step()
        prior.after_step(step, steps, 0.02)
    measures = {name: float(value) for name, value in prior.measures().items()}
    state = prior.state_dict()
    prior.detach()
    if folder is not None:
        clt.save_pretrained(folder)
    whole = clt.whole()
    return {"W_dec": None if whole is None else [W.detach() for W in whole.W_dec], "state": state, "logged": measures}


def with_studies(layout: str, steps: int = 3) -> dict[str, Any]:
    """What the prior on use learns of two batches a step: `one` process, `features` divided over two, or `data`."""
    config = {"activation": {"class_path": "TopK", "init_args": {"k": 4}}, "n_features": FEATURES}
    clt = build(config, Shards.of_group() if layout == "features" else None)
    prior = MultiStudy(0.05, start=0.0, warmup_fraction=0.3, memory=0.8)
    prior.studies = ("a", "b")
    prior.attach(clt)
    prior.check_length(steps)
    losses = LossConfig(auxk=AuxKConfig(coefficient=0.0), extra=[prior])
    values = []
    for step in range(steps):
        for part in [dist.get_rank()] if layout == "data" else [0, 1]:
            x, y = batch(2 * step + part)
            studies = (torch.arange(TOKENS) > (6, 11)[part]).long()
            values.append(float(loss_parts(losses, clt, y, clt(x), step, studies=studies)["multi_study"].detach()))
        prior.after_step(step, steps, 0.02)
    logged = {name: float(value) for name, value in prior.measures().items()}
    return {"values": values, "state": prior.state_dict(), "logged": logged}


def selected(score: Tensor, k: int, floor: float) -> list[list[int]]:
    """Chosen features by token, from this process's columns."""
    shards = Shards.of_group()
    width = score.shape[1] // shards.size
    pairs = select_topk(score[:, shards.rank * width : (shards.rank + 1) * width], k, shards, floor)
    chosen: list[list[int]] = [[] for _ in range(pairs.n_tokens)]
    for token, feature in zip(pairs.tokens.tolist(), pairs.features.tolist()):
        chosen[token].append(shards.rank * width + feature)
    return chosen


def selections(cases: list[tuple[Tensor, int, float]]) -> list[list[list[int]]]:
    return [selected(*case) for case in cases]


def winners(cases: list[tuple[Tensor, int]]) -> list[Tensor]:
    shards = Shards.of_group()
    out = []
    for score, k in cases:  # a budget of k per token
        width = score.shape[1] // shards.size
        own = score[:, shards.rank * width : (shards.rank + 1) * width]
        out.append(batch_winners(own, k * score.shape[0], shards))
    return out


def raised(config: dict[str, Any], features: Tensor, amount: float) -> Tensor | None:
    """The encoder biases of all features after some of them were raised, on the process that would write them."""
    clt = build(config, Shards.of_group())
    clt.raise_biases(features, amount)
    assert isinstance(clt, ShardedTranscoder)
    state = gather_module(clt, clt.state_dict(), "")
    return None if state is None else state["b_enc"]


def screened(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Codes of all features in fp32, and with the encoder's product in bf16."""
    precision.cpu_multiplies = lambda dtype: True  # as a CPU with bf16 instructions does; this process ends soon
    clt = build({"n_features": 640, **config}, Shards.of_group())
    x = torch.cat([batch(index)[0] for index in range(8)], 1)
    found = []
    for low in (False, True):
        with torch.no_grad(), clt.activation.not_tracking(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = clt(x)
        assert (out.repeated is not None) == low
        found.append(clt.gather_codes(out.codes).dense())
    return found[0], found[1]


def evaluated(clt: CrossLayerTranscoder, x: Tensor) -> dict[str, Tensor]:
    """What validation and replacement read of a transcoder."""
    out = clt.eval()(x)
    codes = clt.gather_codes(out.codes)
    layers = [clt.encode_layer(x[layer], layer) for layer in range(LAYERS)]
    dense = codes.dense().detach()
    watched = x.clone().requires_grad_()
    clt(watched).y_hat.square().mean().backward()
    assert watched.grad is not None
    return {
        "y_hat": out.y_hat.detach(),
        "codes": dense,
        "l0": codes.l0(),
        "dx": watched.grad,
        "terms_of_all": clt.layer_terms([codes.slice(i) for i in range(LAYERS)], LAYERS - 1).detach(),
        "fired": clt.fired(out.codes),
        "encode": clt.encode(x).dense().detach(),
        "terms": clt.layer_terms(layers, LAYERS - 1).detach(),
        "decoded": clt.decode(dense, x).detach(),
        "contributions": clt.contributions(Codes.from_dense(dense), 1).detach(),
    }


def evaluate(config: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    clt = build(config, Shards.of_group())
    assert isinstance(clt, ShardedTranscoder)
    clt.load_state_dict(cut_module(clt, state, ""))
    whole = clt.whole()
    found: dict[str, Any] = evaluated(clt, batch(0)[0])
    return found | {"whole": None if whole is None else (whole.config(), whole.state_dict())}
