"""Terms of the loss from outside the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.core.errors import UserError
from clt_lightning.training.buffer import ActivationBuffer
from clt_lightning.training.losses import CascadeConfig, L1Config, LossConfig, LossInputs, LossTerm, loss_parts
from clt_lightning.training.settings import from_plain, to_plain
from tests.transcoder.conftest import MakeCLT


@dataclass
class Seen(LossTerm):
    """The mean of `label * 100 + position` over tokens, at the scale of one feature's codes.

    Args:
        coefficient: weight in the loss.
    """

    needs = ("codes", "labels", "positions")
    coefficient: float = 1.0

    def value(self, given: LossInputs) -> Tensor:
        return (given.labels * 100.0 + given.positions).mean() + 0 * given.codes.l0().sum()


class Squares(LossTerm):
    """Squared codes."""

    needs = ("codes",)

    def __init__(self, coefficient: float = 0.5, warmup_steps: int = 0, scale: float = 1.0) -> None:
        self.coefficient, self.warmup_steps, self.scale = coefficient, warmup_steps, scale

    def value(self, given: LossInputs) -> Tensor:
        return self.scale * given.codes.dense().square().sum(2).mean()


class Undeclared(LossTerm):
    """Reads what it does not ask for."""

    def value(self, given: LossInputs) -> Tensor:
        return given.codes.l0().float().mean()


class L1(LossTerm):
    """Has a name that is taken."""


def module_of(*terms: LossTerm, **options: Any) -> cl.CLTModule:
    return cl.CLTModule(
        {"init_args": {"pretrained": "demo"}},
        cl.TranscoderConfig(n_features=16, activation=cl.TopK(2)),
        LossConfig(cascade=CascadeConfig(0, 0), extra=list(terms)),
        seed=0,
        **options,
    )


def trainer(**options: Any) -> lightning.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        max_steps=1, accelerator="cpu", enable_checkpointing=False, log_every_n_steps=1, **quiet, **options
    )


def batches(label: Tensor | None) -> Any:
    images = torch.rand(3, 3, 48, 48)
    # Lightning takes a plain list for several loaders
    batch = {"image": images} if label is None else {"image": images, "label": label}
    return torch.utils.data.DataLoader([batch] * 2, batch_size=None)  # type: ignore[arg-type]


def test_value_is_weighted_and_warmed(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=cl.TopK(3))
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    out = clt(x)
    expected = out.codes.dense().square().sum(2).mean()
    config = LossConfig(extra=[Squares(0.5, warmup_steps=4, scale=3.0)])
    for step, share in ((0, 0.25), (1, 0.5), (9, 1.0)):
        found = loss_parts(config, clt, x, out, step)
        torch.testing.assert_close(found["squares"], 0.5 * share * 3.0 * expected)
    assert "squares" not in loss_parts(LossConfig(extra=[Squares(0.0)]), clt, x, out, 0)


def test_labels_and_positions_are_those_of_each_token() -> None:
    label = torch.tensor([3, 1, 2])
    for per_image in (None, 2):
        module = module_of(Seen(), tokens=cl.TokensConfig(statistics=8, per_image=per_image))
        run = trainer()
        run.fit(module, batches(label))
        found = float(run.callback_metrics["train/loss/seen"])
        n = module.clip.n_positions
        if per_image is None:
            assert found == pytest.approx(200 + (n - 1) / 2)
        else:
            places = module._positions(3, module._generator(0))
            assert places is not None
            assert found == pytest.approx(200 + float(places.double().mean()))
    # of each token, not of their mean alone
    marks = module._marks({"image": torch.zeros(3, 3, 48, 48), "label": label}, torch.tensor([[4, 5]] * 3), 6)
    assert marks.tolist() == [[3, 4], [3, 5], [1, 4], [1, 5], [2, 4], [2, 5]]


def test_labels_stay_with_their_tokens_in_the_buffer() -> None:
    buffer, generator = ActivationBuffer(10), torch.Generator().manual_seed(0)
    numbers = torch.arange(24).split(4)
    for step, own in enumerate(numbers):
        x = own.float().view(1, -1, 1)
        if step == 3:  # as a run that goes on
            again = ActivationBuffer(10)
            again.load_state_dict(buffer.state_dict(), "cpu")
            buffer = again
        drawn, y, marks = buffer.exchange_marked(x, -x, torch.stack([own, -own], 1), generator)
        assert marks is not None
        assert torch.equal(marks[:, 0].float(), drawn.flatten())
        assert torch.equal(marks[:, 1].float(), y.flatten())


@pytest.mark.parametrize("label", [None, torch.full((3,), -1)], ids=["none", "unknown"])
def test_data_without_labels_are_refused(label: Tensor | None) -> None:
    with pytest.raises(UserError, match=r"term seen needs the class of each image, and these data have no labels"):
        trainer().fit(module_of(Seen(), tokens=cl.TokensConfig(statistics=8)), batches(label))


def test_a_chunk_has_the_scale_of_the_batch() -> None:
    found = []
    for chunk in (None, 5):
        run = trainer()
        tokens = cl.TokensConfig(statistics=8, max_tokens_per_chunk=chunk)
        torch.manual_seed(0)
        run.fit(module_of(Squares(), Seen(), tokens=tokens), batches(torch.tensor([0, 4, 1])))
        found.append([float(run.callback_metrics[f"train/loss/{name}"]) for name in ("squares", "seen")])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][0] > 0


def test_settings_are_saved_and_made_again() -> None:
    config = LossConfig(l1=L1Config(0.1), extra=[Squares(0.25, scale=2.0), Seen(coefficient=3.0)])
    plain = to_plain(config)
    assert plain["extra"][0] == {
        "class_path": "tests.training.test_loss_terms.Squares",
        "init_args": {"coefficient": 0.25, "warmup_steps": 0, "scale": 2.0},
    }
    again = from_plain(LossConfig, plain, trusted=False)  # the class is imported already
    assert to_plain(again) == plain


def test_a_term_that_could_not_be_loaded_again_is_refused_at_fit() -> None:
    class Local(Squares):
        pass

    for term, why in ((Local(), "inside a function"), (Squares(scale=torch.ones(())), "plain values")):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=rf"model\.loss\.extra\[0\].*{why}"):
            trainer().fit(module_of(term, tokens=cl.TokensConfig(statistics=8)), batches(None))


def test_mistakes_are_named(make_clt: MakeCLT) -> None:
    clt, x = make_clt(), torch.randn(3, 7, 8, dtype=torch.float64)
    with pytest.raises(UserError, match=r"undeclared reads codes.*add 'codes' to its `needs`"):
        loss_parts(LossConfig(extra=[Undeclared()]), clt, x, clt(x), 0)
    with pytest.raises(UserError, match=r"loss\.extra\[0\]: there is a term 'l1' already"):
        LossConfig(extra=[L1()])
    with pytest.raises(UserError, match=r"loss\.extra\[1\]: there is a term 'squares' already"):
        LossConfig(extra=[Squares(), Squares()])
    with pytest.raises(UserError, match=r"loss\.extra\[0\].*must not be negative"):
        LossConfig(extra=[Squares(-1.0)])
    with pytest.raises(UserError, match="must be a LossTerm"):
        LossConfig(extra=[L1Config(0.1)])  # type: ignore[list-item]
    with pytest.raises(UserError, match="needs must be a list out of codes"):
        type("Odd", (LossTerm,), {"needs": ("code",)})
    with pytest.raises(UserError, match="loss term Squares takes coefficient, warmup_steps, scale"):
        from_plain(
            LossConfig,
            {"extra": [{"class_path": "tests.training.test_loss_terms.Squares", "init_args": {"size": 1}}]},
        )


@dataclass
class OfStudy(LossTerm):
    """The mean number of the tokens' data sets."""

    needs = ("codes", "studies")
    coefficient: float = 1.0

    def value(self, given: LossInputs) -> Tensor:
        return given.studies.float().mean() + 0 * given.codes.l0().sum()


@pytest.mark.parametrize("buffer", [0, 400])
def test_a_term_is_told_the_data_set_of_each_token(buffer: int) -> None:
    run = trainer()
    module = module_of(OfStudy(), tokens=cl.TokensConfig(statistics=8, buffer=buffer))
    loader = batches(None)
    for batch in loader.dataset:
        batch["study"] = torch.tensor([0, 2, 1])
    run.fit(module, loader)
    assert float(run.callback_metrics["train/loss/of_study"]) == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"term of_study needs to know the data set of each image"):
        trainer().fit(module_of(OfStudy(), tokens=cl.TokensConfig(statistics=8)), batches(None))
