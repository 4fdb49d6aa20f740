"""Public functions and methods that take or give tensors say of what shape, in a form that jaxtyping checks."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from inspect import get_annotations, isclass, isfunction, unwrap
from typing import Any

PACKAGE = "clt_lightning"
#: Whose `__all__` is the public surface
SURFACE = (
    "clt_lightning",
    "clt_lightning.backbone",
    "clt_lightning.transcoder",
    "clt_lightning.metrics",
    "clt_lightning.analysis",
    "clt_lightning.analysis.circuits",
    "clt_lightning.analysis.dense",
    "clt_lightning.analysis.effects",
    "clt_lightning.analysis.probes",
)
#: jaxtyping's
SHAPED = {"Float", "Int", "Bool", "Shaped", "Num", "UInt8"}
#: Tensors of any shape whatever
ANY_SHAPE = {"CrossLayerTranscoder.sum_over_shards", "AttentionModule.training_step"}


def bare(annotation: str) -> bool:
    """Whether an annotation has a tensor without a shape; tables of named tensors are what a state dict is."""

    def found(node: ast.AST) -> bool:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            if node.value.id in SHAPED:
                return False
            if node.value.id in ("dict", "Mapping") and ast.unparse(node.slice).endswith("str, Tensor)"):
                return False
        if isinstance(node, ast.Name) and node.id == "Tensor":
            return True
        return any(found(child) for child in ast.iter_child_nodes(node))

    return found(ast.parse(annotation, mode="eval"))


def members() -> Iterator[tuple[Any, str, Any]]:
    """Owner, name and what is there: functions of modules, and methods, properties and the like of classes."""
    seen = set()
    for path in SURFACE:
        module = importlib.import_module(path)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            owners = [base for base in thing.__mro__ if base.__module__.startswith(PACKAGE)] if isclass(thing) else []
            found: list[tuple[Any, str, Any]] = [
                (owner, key, member) for owner in owners for key, member in list(vars(owner).items())
            ]
            for owner, key, member in found or [(module, name, thing)]:
                if (id(owner), key) in seen or (key.startswith("_") and key not in ("__call__", "__init__")):
                    continue
                seen.add((id(owner), key))
                yield owner, key, member


def functions() -> dict[str, Callable[..., Any]]:
    """By name, without what wraps them."""
    out = {}
    for owner, key, member in members():
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if isfunction(inner):
            out[f"{owner.__name__}.{key}" if isclass(owner) else key] = unwrap(inner)
    return out


def test_public_tensors_have_shapes() -> None:
    lacking = [
        name
        for name, found in functions().items()
        if name not in ANY_SHAPE and any(isinstance(t, str) and bare(t) for t in get_annotations(found).values())
    ]
    assert not lacking, f"without shapes (Float[Tensor, 'layers tokens d']): {', '.join(sorted(lacking))}"


def test_the_walk_sees_what_lacks_a_shape() -> None:
    assert bare("Tensor")
    assert bare("tuple[Tensor, int] | None")
    assert bare("list[Float[Tensor, 'a b'] | Tensor]")
    assert not bare("Float[Tensor, 'layers tokens d'] | None")
    assert not bare("dict[str, Tensor]")
    walked = functions()
    assert {"CrossLayerTranscoder.encode", "ScaledDecoders.skip_term", "Running.run_from", "observe", "steer"} <= set(
        walked
    )
    assert len(walked) > 250
