"""The training step against what it should log and count, worked out by hand from the frozen CLIP's activations.

The learning rate is 0: what the transcoder is after a fit, it was in every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import clt_lightning as cl
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.training.losses import AuxKConfig, CascadeConfig, L1Config
from clt_lightning.training.losses.cascade import cascade_parts
from clt_lightning.training.settings import LossConfig, TokensConfig, TranscoderConfig
from clt_lightning.transcoder import Activation
from tests.parallel import processes

IMAGES, STEPS, FEATURES = 3, 6, 160


def still(params: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.0)


class Noise(Dataset[dict[str, Any]]):
    """Images that differ from one to the next: in a batch, other features fire than in the one before."""

    def __init__(self, indices: list[int], size: int) -> None:
        self.indices, self.size = indices, size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.indices[item])
        colour = 2 * torch.randn(3, 1, 1, generator=generator)
        return {"image": torch.randn(3, self.size, self.size, generator=generator) + colour, "key": str(item)}


#: The plain loss: no cascade, which runs the model a second time
OFF = CascadeConfig(stream=0.0, embedding=0.0, reconstruction=0.0)


def made(activation: Activation, loss: LossConfig | None = None, **tokens: Any) -> cl.CLTModule:
    """A module whose decoders and skip path are not zero."""
    module = cl.CLTModule(
        FrozenCLIP(pretrained="demo"),
        TranscoderConfig(n_features=FEATURES, activation=activation, skip=True),
        loss or LossConfig(auxk=AuxKConfig(coefficient=0.0), cascade=OFF),
        optimizer=still,
        tokens=TokensConfig(**tokens),
        seed=1,
    )
    generator = torch.Generator().manual_seed(2)
    assert module.transcoder.W_skip is not None
    with torch.no_grad():
        for W in (*module.transcoder.W_dec, *module.transcoder.W_skip):
            W.copy_(0.1 * torch.randn(W.shape, generator=generator))
    return module


def batches(module: cl.CLTModule, rank: int = 0, world: int = 1) -> DataLoader[dict[str, Any]]:
    """Of process `rank`: another batch in every step and process."""
    first = [IMAGES * (world * step + rank) for step in range(STEPS)]
    indices = [start + i for start in first for i in range(IMAGES)]
    return DataLoader(Noise(indices, module.clip.image_size), IMAGES)


def fit(module: cl.CLTModule, folder: Path, rank: int = 0, world: int = 1, **options: Any) -> list[dict[str, float]]:
    """Trains; gives what each step logged."""
    logger = CSVLogger(folder, name="", version=0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        log_every_n_steps=1,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, batches(module, rank, world))
    assert trainer.global_step == STEPS
    if rank:
        return []
    rows = np.genfromtxt(Path(logger.log_dir) / "metrics.csv", delimiter=",", names=True, deletechars="")
    assert rows.dtype.names is not None
    names = {name: name.replace("_", "/", 2) for name in rows.dtype.names}
    return [{name: float(row[name]) for name in names if not np.isnan(row[name])} for row in np.atleast_1d(rows)]


def seen(module: cl.CLTModule, rank: int = 0, world: int = 1) -> list[tuple[Tensor, Tensor]]:
    """x and y of each step, in float64."""
    acts = [module.clip.capture(batch["image"]) for batch in batches(module, rank, world)]
    return [(a.x.double(), a.y.double()) for a in acts]


def pre_activations(module: cl.CLTModule, x: Tensor) -> Tensor:
    """`(layers, tokens, F)`, by the definition."""
    clt = module.transcoder
    W = torch.stack(list(clt.W_enc)).double()
    return torch.einsum("lnd,lfd->lnf", x * clt.x_scale[:, None, None], W) + clt.b_enc[:, None].double()


def topk_codes(pre: Tensor, k: int) -> Tensor:
    cut = pre.topk(k, dim=2).values[:, :, -1:]
    return torch.where((pre >= cut) & (pre > 0), pre, 0.0)


def written(module: cl.CLTModule, codes: Tensor) -> Tensor:
    """What codes add to every layer, `(layers, tokens, d_model)`, in the backbone's units."""
    clt = module.transcoder
    out = torch.zeros(*codes.shape[:2], clt.d_model, dtype=torch.float64)
    for source in range(clt.n_layers):
        for target in range(source, clt.n_layers):
            out[target] += codes[source] @ clt.W_dec[source][:, target - source].double() * clt.y_scale[target]
    return out


def reconstruction(module: cl.CLTModule, x: Tensor, codes: Tensor) -> Tensor:
    clt = module.transcoder
    assert clt.W_skip is not None
    skip = torch.einsum("lnd,led->lne", x * clt.x_scale[:, None, None], torch.stack(list(clt.W_skip)).double())
    return written(module, codes) + (skip + clt.b_dec[:, None].double()) * clt.y_scale[:, None, None]


def fvu(module: cl.CLTModule, y: Tensor, y_hat: Tensor) -> float:
    return float(((y - y_hat).square().sum(2).mean(1) / module.transcoder.y_var.double()).mean())


@torch.no_grad()
def test_losses_counters_and_dead_features(tmp_path: Path) -> None:
    """Reconstruction, L1 and AuxK of each step; a feature counts as dead from `dead_after_tokens` on, not later."""
    n = IMAGES * cl.FrozenCLIP(pretrained="demo").n_positions
    loss = LossConfig(
        l1=L1Config(0.01), auxk=AuxKConfig(0.5, k=3, dead_after_tokens=2 * n, token_fraction=1.0), cascade=OFF
    )
    module = made(cl.TopK(2), loss)
    with torch.enable_grad():
        logged = fit(module, tmp_path)
    assert len(logged) == STEPS
    clt, since = module.transcoder, torch.zeros(module.clip.n_layers, FEATURES, dtype=torch.int64)
    norms = torch.stack([W.double().square().sum((1, 2)).sqrt() for W in clt.W_dec])
    for step, ((x, y), found) in enumerate(zip(seen(module), logged)):
        pre = pre_activations(module, x)
        codes = topk_codes(pre, 2)
        y_hat = reconstruction(module, x, codes)
        parts = {
            "reconstruction": fvu(module, y, y_hat),
            "l1": 0.01 * float((codes * norms[:, None]).sum(2).mean()),
        }
        dead = since >= 2 * n
        assert dead.any() == (step >= 2)
        if dead.any():
            live_out = pre.masked_fill(~dead[:, None], -torch.inf)
            parts["auxk"] = 0.5 * fvu(module, y - y_hat, written(module, topk_codes(live_out, 3)))
        assert {key.removeprefix("train/loss/") for key in found if key.startswith("train/loss/")} == parts.keys()
        for name, value in parts.items():
            assert found[f"train/loss/{name}"] == pytest.approx(value, rel=2e-5), (step, name)
        assert found["train/loss"] == pytest.approx(sum(parts.values()), rel=2e-5)
        assert found["train/l0"] == pytest.approx(float((codes > 0).sum(2).double().mean()))
        since += n
        since[(codes > 0).any(1)] = 0
    assert torch.equal(module.tokens_since_fired, since)
    assert {0, n, STEPS * n} <= set(since.flatten().tolist())  # just now, once before, and never
    assert module.batches_seen == STEPS


@torch.no_grad()
def test_normalisation_comes_from_the_tokens_that_are_asked_for(tmp_path: Path) -> None:
    """Of whole batches: the first two here."""
    n = IMAGES * cl.FrozenCLIP(pretrained="demo").n_positions
    module = made(cl.TopK(2), statistics=n + 1)
    with torch.enable_grad():
        fit(module, tmp_path)
    x, y = (torch.cat(parts, 1) for parts in zip(*seen(module)[:2]))
    clt = module.transcoder
    torch.testing.assert_close(clt.y_mean.double(), y.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((clt.b_dec * clt.y_scale[:, None]).double(), y.mean(1), rtol=1e-5, atol=1e-6)
    variance = (y - y.mean(1, keepdim=True)).square().sum(2).mean(1)
    torch.testing.assert_close(clt.y_var.double(), variance, rtol=1e-5, atol=0)
    for scale, size in ((clt.x_scale, x.norm(dim=2).mean(1) / clt.d_model**0.5), (1 / clt.y_scale, variance.sqrt())):
        target = size if scale is clt.x_scale else size / clt.d_model**0.5
        assert (scale.double() * target).log2().abs().max() <= 0.5 + 1e-6
        assert torch.equal(scale.log2().round(), scale.log2())


def test_a_step_in_chunks_logs_what_the_whole_one_does(tmp_path: Path) -> None:
    loss = LossConfig(auxk=AuxKConfig(0.5, k=3, dead_after_tokens=1, token_fraction=0.3))
    whole, chunks = (made(cl.TopK(2), loss, max_tokens_per_chunk=chunk) for chunk in (None, 32))
    expected, found = fit(whole, tmp_path / "whole"), fit(chunks, tmp_path / "chunks")
    assert any("train/loss/auxk" in row for row in expected)
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    assert torch.equal(whole.tokens_since_fired, chunks.tokens_since_fired)


def test_the_cascade_begins_after_its_share_of_the_run(tmp_path: Path) -> None:
    """Before: no part of it. From then on the loss is the sum with it."""
    cascade = CascadeConfig(embedding=1.0, stream=0.5, images=2, start=0.5)
    logged = fit(made(cl.TopK(2), LossConfig(auxk=AuxKConfig(0.0), cascade=cascade)), tmp_path)
    with_cascade = {"train/loss/reconstruction", "train/loss/cascade_stream", "train/loss/cascade_embedding"}
    for step, row in enumerate(logged):
        parts = {key for key in row if key.startswith("train/loss/")}
        assert parts == (with_cascade if step >= STEPS // 2 else {"train/loss/reconstruction"})
        assert row["train/loss"] == pytest.approx(sum(row[key] for key in parts), rel=1e-6)


@pytest.mark.parametrize(
    ("tokens", "same"),
    [({}, True), ({"per_image": 4}, False), ({"buffer": 400}, False), ({"max_tokens_per_chunk": 40}, False)],
    ids=["whole", "positions", "buffer", "chunks"],
)
def test_the_cascade_takes_the_steps_codes_where_their_tokens_are_the_images(
    tokens: dict[str, Any], same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    parts: Any = cascade_parts

    def watched(*given: Any, codes: Any = None) -> dict[str, Tensor]:
        taken.append(codes is not None)
        found: dict[str, Tensor] = parts(*given, codes=codes)
        for name, value in parts(*given).items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0)
        return found

    monkeypatch.setattr("clt_lightning.training.module.cascade_parts", watched)
    cascade = CascadeConfig(embedding=1.0, stream=0.5, images=2, start=0.0, warmup=0.0)
    fit(made(cl.TopK(2), LossConfig(auxk=AuxKConfig(0.0), cascade=cascade), **tokens), tmp_path)
    assert taken == [same] * STEPS


def test_positions_are_drawn_anew_for_every_batch_and_seed(tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 1, 5):
        module = made(cl.TopK(2), per_image=4)
        module.seed = seed
        positions: list[Tensor] = []
        capture = module.clip.capture

        def watch(*given: Any, seen: list[Tensor] = positions, of: Any = capture, **named: Any) -> Any:
            seen.append(named["positions"])
            return of(*given, **named)

        module.clip.capture = watch  # type: ignore[method-assign]
        fit(module, tmp_path)
        assert all(p.shape == (IMAGES, 4) for p in positions)
        drawn.append(torch.stack(positions[-STEPS:]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len({tuple(p.flatten().tolist()) for p in drawn[0]}) == STEPS


def divided_batch(folder: Path) -> dict[str, Any]:
    """One of two processes that see different batches."""
    rank = torch.distributed.get_rank()
    module = made(cl.BatchTopK(2), statistics=1)
    fit(module, folder, rank, 2, devices=2, strategy="ddp")
    clt, activation = module.transcoder, module.transcoder.activation
    assert isinstance(activation, cl.BatchTopK)
    return {
        "threshold": activation.threshold,
        "updates": activation.updates,
        "since": module.tokens_since_fired,
        "y_mean": clt.y_mean,
        "state": module.state_dict(),
    }


@torch.no_grad()
def test_two_processes_share_counters_threshold_and_normalisation(tmp_path: Path) -> None:
    ranks = processes.run(divided_batch, tmp_path, 2, tmp_path)
    for name in ("threshold", "updates", "since", "y_mean"):
        assert torch.equal(ranks[0][name], ranks[1][name]), name
    module = made(cl.BatchTopK(2))
    module.load_state_dict(ranks[0]["state"], strict=False)
    shares = [seen(module, rank, 2) for rank in range(2)]
    since = torch.zeros(module.clip.n_layers, FEATURES, dtype=torch.int64)
    cuts = []
    for step in range(STEPS):
        codes = []
        for x, _ in (share[step] for share in shares):
            pre = pre_activations(module, x)
            kept = pre.flatten(1).topk(2 * pre.shape[1], dim=1).values
            cuts.append(kept.sort(dim=1).values[:, int(0.02 * kept.shape[1])])  # 98 % of the winners reach it
            codes.append(torch.where(pre >= kept[:, -1:, None], pre, 0.0))
        both = torch.cat(codes, 1)
        since += both.shape[1]
        since[(both > 0).any(1)] = 0
    # while there are few of them, the running mean is the mean: over steps and processes
    torch.testing.assert_close(ranks[0]["threshold"].double(), torch.stack(cuts).mean(0), rtol=1e-5, atol=0)
    assert ranks[0]["updates"].tolist() == [STEPS] * module.clip.n_layers
    assert torch.equal(ranks[0]["since"], since)
    y = torch.cat([share[0][1] for share in shares], 1)
    torch.testing.assert_close(ranks[0]["y_mean"].double(), y.mean(1), rtol=1e-5, atol=1e-6)
