"""Every supported layout: captured tensors, embeddings, overrides and token sets are the library's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import timm
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.backbone.families import family_of
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.callbacks import Reconstruction
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import BLOCK_SITES
from clt_lightning.core.tokens import TokenLayout
from clt_lightning.training.losses import CascadeConfig, LossConfig

from .models import ROWS, Row, doc_table, make

IDS = [row.what for row in ROWS]
DOCS = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture(params=ROWS, ids=IDS)
def row(request: pytest.FixtureRequest) -> Row:
    result: Row = request.param
    return result


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def by_hand(row: Row, model: Any, blocks: list[Any], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every site of every block through hooks of one's own, and the library's embedding."""
    found: dict[str, list[Tensor]] = {site: [] for site in BLOCK_SITES}
    handles = []
    for block in blocks:
        for site, (module, side, then) in row.hand(block).items():

            def take(tensor: Any, site: str = site, then: Any = then) -> None:
                tensor = tensor[0] if isinstance(tensor, tuple) else tensor
                found[site].append((tensor if then is None else then(tensor)).clone())

            if side == "out":
                handles.append(module.register_forward_hook(lambda m, a, out, take=take: take(out)))
            else:
                handles.append(module.register_forward_pre_hook(lambda m, a, take=take: take(a)))
    with torch.no_grad():
        embedding = row.own(model, images)
    for handle in handles:
        handle.remove()
    return {site: torch.stack(tensors).flatten(1, 2) for site, tensors in found.items()}, embedding


def test_sites_and_embeddings_are_the_librarys_own(row: Row, images: Tensor) -> None:
    model = make(row)
    model.requires_grad_(False)  # as it will be: torch has another path for attention that needs no gradients
    expected, embedding = by_hand(row, model, family_of(model, "x").blocks, images)
    vit = FrozenViT.from_model(model)
    assert torch.equal(vit.encode_image(images, normalize=False), embedding)
    found = vit.read(images, (*BLOCK_SITES, "final"))
    for site in BLOCK_SITES:
        if site == "attn_z":  # torch's own attention does not give it: computed beside it
            torch.testing.assert_close(found[site], expected[site], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found[site], expected[site]), site
    assert torch.equal(found["final"][0], embedding)
    assert vit.embed_dim == embedding.shape[1]
    some = vit.read(images, "mlp_out", layers=[2, 0], positions=torch.tensor([[1, 3], [0, 5], [2, 15]]))["mlp_out"]
    whole = expected["mlp_out"].unflatten(1, (3, -1))
    assert torch.equal(some[0].view(3, 2, -1)[2, 1], whole[2, 2, 15])
    assert torch.equal(some[1].view(3, 2, -1)[1, 0], whole[0, 1, 0])
    assert all("forward" not in vars(module) for module in model.modules())


def test_the_own_output_put_back_changes_nothing(row: Row, images: Tensor) -> None:
    vit = FrozenViT.from_model(make(row))
    before = vit.encode_image(images, normalize=False)
    sites = [*BLOCK_SITES, "final", *(["final_tokens"] if vit.family.norm is not None else [])]
    for site in sites:
        seen: list[int] = []

        def keep(layer: int, x: Tensor, compute: Any, seen: list[int] = seen) -> Tensor:
            seen.append(layer)
            result: Tensor = compute()
            return result

        with vit.override(site, keep):
            assert torch.equal(vit.encode_image(images, normalize=False), before), site
        assert seen == ([0] if site.startswith("final") else [0, 1, 2])
    assert all("forward" not in vars(module) for module in vit.model.modules())


def test_an_override_takes_hold_and_what_is_read_is_what_it_gave(row: Row, images: Tensor) -> None:
    vit = FrozenViT.from_model(make(row))
    before = vit.encode_image(images, normalize=False)
    for site in BLOCK_SITES:
        with vit.override(site, lambda layer, x, compute: 0.5 * compute() + 1, [1]):
            after = vit.read(images, (site, "final"))
        assert not torch.allclose(after["final"][0], before, atol=1e-4), site
        own = vit.read(images, site)[site]
        torch.testing.assert_close(after[site][1], 0.5 * own[1] + 1)
        torch.testing.assert_close(after[site][0], own[0])


def test_the_rest_of_a_forward(row: Row, images: Tensor) -> None:
    vit = FrozenViT.from_model(make(row))
    whole = vit.encode_image(images)
    seen = vit.read(images, ("resid_pre", "resid_post"))
    streams = [*seen["resid_pre"], seen["resid_post"][-1]]
    for layer, stream in enumerate(streams):
        torch.testing.assert_close(vit.run_from(layer, stream.unflatten(0, (3, -1))), whole, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="the stream must be"):
        vit.run_from(0, streams[0])
    with pytest.raises(UserError, match=r"layer must lie in 0\.\.3"):
        vit.run_from(4, streams[0].unflatten(0, (3, -1)))


def test_token_sets(row: Row, images: Tensor) -> None:
    """A change of one input patch moves its own token in the first stream; prefix tokens do not depend on the image."""
    vit = FrozenViT.from_model(make(row))
    assert vit.tokens == row.tokens
    assert (vit.n_positions, vit.n_prefix) == (row.tokens.n_positions, row.tokens.n_prefix)
    first = vit.read(images, "resid_pre", [0])["resid_pre"].unflatten(1, (3, -1))[0]
    moved = vit.read(images.flip(0), "resid_pre", [0])["resid_pre"].unflatten(1, (3, -1))[0]
    differs = (first - moved).abs().amax((0, 2)) > 1e-5
    patches = vit.tokens.span("patch")
    assert bool(differs[patches].all())
    assert int(differs.sum()) == vit.tokens.n_patches == vit.grid[0] * vit.grid[1]
    for name in {"cls", "register"} - set(vit.tokens.sets):
        with pytest.raises(UserError, match=f"tokens '{name}': this backbone has no"):
            vit.capture(images).select(name)


def test_the_readout_is_the_embedding(row: Row, images: Tensor) -> None:
    vit = FrozenViT.from_model(make(row))
    readout = vit.readout()
    linear = row.pooling == "[CLS]"
    assert (readout is not None) == linear
    if readout is None:
        return
    last = vit.read(images, "resid_post")["resid_post"][-1].unflatten(0, (3, -1))[:, 0]
    embedding = vit.encode_image(images, normalize=False).double()
    torch.testing.assert_close(readout.embed(last), embedding, rtol=1e-5, atol=1e-5)
    texts = torch.randn(vit.embed_dim, 4, dtype=torch.float64)
    split = (last.double() @ readout.directions(texts)) * readout.scale(last)[:, None] + readout.constants(texts)
    torch.testing.assert_close(split, embedding @ texts, rtol=1e-5, atol=1e-5)


def test_five_steps_of_training(row: Row, images: Tensor) -> None:
    vit = FrozenViT.from_model(make(row))
    clt = cl.CrossLayerTranscoder(3, 32, 64, cl.TopK(8), seed=0)
    loss = LossConfig(cascade=CascadeConfig(stream=0, embedding=0))
    module = cl.CLTModule(vit, clt, loss, tokens=cl.TokensConfig(statistics=32), seed=0)
    loader: Any = torch.utils.data.DataLoader(images, batch_size=3)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_steps=5,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[Reconstruction()],
    )
    trainer.fit(module, loader)
    before = float(trainer.validate(module, loader, verbose=False)[0]["val/fvu/all"])
    found = trainer.validate(module, loader, verbose=False)[0]
    assert 0 < before < 1
    assert {name.split("/")[2] for name in found if name.startswith("val/fvu/") and "layer" not in name} == set(
        row.tokens.sets
    )


def test_the_docs_have_the_table() -> None:
    assert doc_table() in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "'resnet18' is a ResNet.*Convolutional networks have no residual stream"),
        ("convnext_tiny", "ConvNeXt"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("vit_small_patch14_dinov22", "close to it: .*vit_small_patch14_dinov2"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock|no architecture"),
    ],
)
def test_what_is_no_vision_transformer_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        FrozenViT(name, None)


def test_blocks_that_run_both_branches_at_once_are_refused() -> None:
    parallel = timm.models.vision_transformer.ParallelScalingBlock
    model = timm.create_model("vit_tiny_patch16_224", depth=2, block_fn=parallel)
    with pytest.raises(UserError, match=r"ParallelScalingBlock.*one after the other"):
        FrozenViT.from_model(model)


def test_a_block_that_computes_something_else_is_noticed() -> None:
    from . import layouts

    class Odd(layouts.NewViTLayer):
        def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
            return super().forward(2 * hidden_states, attention_mask)

    with pytest.raises(UserError, match="computes something else"):
        FrozenViT.from_model(layouts.Tower(Odd, nested="layers").eval())


def test_a_wrong_token_layout_is_noticed() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(UserError, match=r"expected after its first block, got \(1, 5, 32\)"):
        FrozenViT.from_model(model, tokens=TokenLayout(4, n_registers=2))


def test_the_models_own_classifier(images: Tensor) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=7)
    vit = FrozenViT.from_model(model)
    matrix, bias = vit.classifier()
    logits = vit.encode_image(images, normalize=False) @ matrix + bias
    torch.testing.assert_close(logits, model(images), rtol=1e-5, atol=1e-5)
    assert vit.head == "classifier"
    bare = FrozenViT.from_model(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0))
    assert bare.head == "none"
    with pytest.raises(UserError, match="no classifier of its own"):
        bare.classifier()


def test_names_tags_and_files(tmp_path: Path) -> None:
    first = FrozenViT("vit_tiny_patch16_224", None, image_size=32, seed=3)
    assert first.has_random_weights
    assert (first.image_size, first.n_positions) == (32, 5)
    again = FrozenViT("vit_tiny_patch16_224", None, image_size=32, seed=3)
    assert first.describe() == again.describe()
    assert FrozenViT("vit_tiny_patch16_224", None, image_size=32).describe() != first.describe()
    torch.save(first.model.state_dict(), tmp_path / "weights.pt")
    loaded = FrozenViT("vit_tiny_patch16_224", str(tmp_path / "weights.pt"), image_size=32)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.encode_image(images), first.encode_image(images))
    with pytest.raises(UserError, match=r"do not fit 'vit_small_patch16_224': .* expected"):
        FrozenViT("vit_small_patch16_224", str(tmp_path / "weights.pt"), image_size=32)
    with pytest.raises(UserError, match=r"'gone.pt' is neither one of timm's tags .*augreg_in21k"):
        FrozenViT("vit_tiny_patch16_224", "gone.pt")
    with pytest.raises(UserError, match="no text tower"):
        first.zero_shot_head(["a"], ["{c}"])
    rough = FrozenViT("vit_tiny_patch16_224", None, "bf16", image_size=32, seed=3)
    assert rough.capture(images).x.dtype == torch.bfloat16
    assert rough.encode_image(images).dtype == torch.float32
    assert float((rough.encode_image(images) * first.encode_image(images)).sum(1).min()) > 0.99
    fine = FrozenViT("vit_tiny_patch16_224", None, "fp64", image_size=32, seed=3)
    assert fine.encode_image(images).dtype == torch.float64
