"""The shapes in signatures: jaxtyping checks those of the whole public surface while small examples run."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

import clt_lightning as cl
from clt_lightning import analysis
from clt_lightning.analysis import circuits
from clt_lightning.analysis.evaluate import EffectOptions, EvaluateOptions
from clt_lightning.analysis.faithfulness import FaithfulnessOptions
from clt_lightning.analysis.features import FeatureOptions
from clt_lightning.metrics import zero_shot
from clt_lightning.training.attention.start import fit_size, start_from, start_queries
from clt_lightning.transcoder import AuxiliaryRequest, BatchTopK, JumpReLU, TopK
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of
from tests.test_public_shapes import members

NAMES, TEMPLATES = ["red circle", "blue square", "green star"], ["a picture of a {c}"]


def checked(found: Callable[..., Any]) -> Callable[..., Any] | None:
    """The same function, whose tensors are checked; None where its signature has none."""
    inner: Any = inspect.unwrap(found)
    shapes = {name: text for name, text in inspect.get_annotations(inner).items() if "[Tensor" in str(text)}
    if not shapes or inspect.isgeneratorfunction(inner):
        return None
    copy: Any = types.FunctionType(
        inner.__code__, inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copy.__kwdefaults__, copy.__qualname__, copy.__module__ = inner.__kwdefaults__, inner.__qualname__, inner.__module__
    copy.__annotations__ = shapes  # alone: beartype cannot take all of what a type checker knows
    made: Callable[..., Any] = jaxtyped(copy, typechecker=beartype)
    return made if inner is found else torch.no_grad()(made)


@pytest.fixture(scope="module", autouse=True)
def hooked() -> Iterator[None]:
    """While these tests run, public functions check the shapes of what they take and give."""
    surface = list(members())
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("clt_lightning")]
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        for owner, key, member in surface:
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            made = checked(function) if inspect.isfunction(function) else None
            if made is None:
                continue
            count += 1
            if inspect.isclass(owner):
                kind: Any = type(member) if member is not function else lambda f: f
                patch.setattr(owner, key, kind(made))
                continue
            for module in modules:  # wherever it was imported by name
                for name, thing in list(vars(module).items()):
                    if thing is member:
                        patch.setattr(module, name, made)
        assert count >= 150
        yield


@pytest.fixture(scope="module")
def clip() -> cl.FrozenCLIP:
    return cl.FrozenCLIP(pretrained="demo")


def batches() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(2, 3, 48, 48, generator=generator),
            "label": torch.tensor([0, 2]),
            "key": [f"{n}/0", f"{n}/1"],
        }
        for n in range(2)
    ]


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer", "sae"])
@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_transcoders(topology: Any, backend: Any) -> None:
    for activation in (TopK(3), JumpReLU(0.1), BatchTopK(3, cls_weight=4.0)):
        skip = topology != "sae"
        clt = cl.CrossLayerTranscoder(
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


@pytest.mark.parametrize("d_qk", [None, 3])
def test_sparse_attention(d_qk: int | None) -> None:
    units = cl.SparseAttention(2, 8, 12, 2, TopK(3), d_qk=d_qk, seed=0)
    x, model = torch.randn(2, 3, 5, 8), torch.softmax(torch.randn(3, 2, 5, 5), -1)
    patterns = None if d_qk else [model, model]
    pattern = None if patterns is None else model
    units(x, patterns).y_hat.sum().backward()
    codes = units.replace(1, x[1], pattern)[1]
    units.decode(1, codes), units.encode(0, x[0], pattern)
    some = torch.tensor([0, 2])
    units.key_terms(0, x[0], some, torch.tensor([1, 4]), torch.tensor([3, 7]), pattern)
    units.readers(0, some), units.writes(0, some), fit_size(units, 0, x[0], torch.randn(15, 8), pattern)
    start_from(units, 0, torch.randn(12, 8), torch.randn(12, 8), torch.randn(12))
    if d_qk:
        units.pattern(0, x[0]), start_queries(units, 0, torch.randn(2, 4, 9), torch.randn(2, 4, 9), 0.5)


def test_analyses(clip: cl.FrozenCLIP) -> None:
    head = clip.zero_shot_head(NAMES, TEMPLATES)
    options = EvaluateOptions(
        faithfulness=FaithfulnessOptions(draws=2),
        features=FeatureOptions(k=2, samples=1),
        effects=EffectOptions(check_images=2, check_features=4, check_pairs=8, integrated_pairs=4),
        bootstrap=10,
    )
    clt = cl.CrossLayerTranscoder(4, 96, 48, TopK(4), skip=True, seed=0).eval()
    clt.normalized.fill_(True)
    torch.nn.init.normal_(clt.W_dec[0])
    analysis.evaluate(clip, clt, batches(), NAMES, TEMPLATES, batches(), options, progress=False)
    image = batches()[0]["image"]
    analysis.explain_image(clip, clt, image[0], head, NAMES)
    with pytest.warns(UserWarning, match="linear skip"):
        analysis.steer(clip, clt, batches(), [analysis.Edit(0, 3, "set", 1.0)], head, NAMES)
    clip.read(image, "resid_post", positions=torch.tensor([[0, 3]] * 2))
    cl.Target.difference(head, NAMES, 0, 1).value(clip.encode_image(image))
    cosines = torch.randn(4, 3)
    zero_shot.ranks_of(cosines, torch.tensor([0, 1, -1, 2])), zero_shot.divergences(cosines, cosines)


def test_circuits() -> None:
    tiny, clt, image = clip_of("plain"), clt_of(), an_image().float()
    graph = circuits.attribute(tiny, clt, image, a_target())
    graph.cumulated(), graph.nodes.of("feature")
    model = circuits.model_of_image(tiny, clt, image)
    circuits.head_table(model, graph, graph.top(2))
    model.tower.constants(1)
    circuits.intervene(tiny, clt, image, [graph.nodes[graph.top(1)[0]]]).prediction  # noqa: B018
    images = torch.stack([an_image(n).float() for n in range(3)])
    means = circuits.mean_codes(tiny, clt, images)
    circuits.ablate_concepts(tiny, clt, images, torch.eye(16)[:, :3], 1, {"a": [(0, 3)]}, means, draws=5)
    found = circuits.expected_graph(tiny, clt, [{"image": images}], lambda embedding: a_target())
    circuits.by_coactivation(model.parts, clt, found)
    circuits.random_features(found.active, 2, 0)


def test_what_is_wrong_is_noticed(clip: cl.FrozenCLIP) -> None:
    clt = cl.CrossLayerTranscoder(2, 8, 16, TopK(3))
    image, codes = batches()[0]["image"], clt.encode(torch.randn(2, 4, 8))
    calls: list[Callable[[], Any]] = [
        lambda: clt.skip_term(torch.randn(2, 4, 8), 0),
        lambda: clt.decode(torch.randn(2, 16)),
        lambda: clt.code_gradients(codes, torch.randn(4, 8)),
        lambda: clt.raise_biases(torch.zeros(2, 16), 0.1),
        lambda: clip.logits(torch.randn(3, 64), torch.randn(64)),
        lambda: clip.run_from(4, torch.randn(37, 96)),
        lambda: cl.Target("a", torch.randn(64, 2)),
        lambda: clip.capture(image, positions=torch.tensor([[0.0, 3.0]] * 2)),
        lambda: analysis.explain_image(clip, clt, image, torch.randn(64, 3), NAMES),
        lambda: codes.select_tokens(torch.ones(4)),
    ]
    for call in calls:
        with pytest.raises(TypeCheckError):
            call()
