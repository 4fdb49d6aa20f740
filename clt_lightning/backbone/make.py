"""A backbone from `{class_path, init_args}`, and back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from clt_lightning.backbone.backbone import Backbone
from clt_lightning.core.classes import load_class, short_path, subclasses
from clt_lightning.core.errors import UserError, setting, within

#: `pretrained` of a backbone that was made by other hands
GIVEN = "given"
#: What a config that says nothing about it means
DEFAULT_CLASS = "clt_lightning.FrozenCLIP"

Spec = dict[str, Any]
"""Plain values: `{"class_path": "clt_lightning.FrozenCLIP", "init_args": {"name": ..., "pretrained": ...}}`."""
_box: ContextVar[list[Backbone] | None] = ContextVar("_box", default=None)
AnyBackbone = Backbone | Spec | str | Callable[[], Backbone] | None


@contextmanager
def one_backbone(box: list[Backbone]) -> Iterator[None]:
    """While active in this thread, the first backbone that is made goes into the box, and is what all others get."""
    token = _box.set(box)
    try:
        yield
    finally:
        _box.reset(token)


def make_backbone(given: AnyBackbone, *, trusted: bool = False) -> Backbone:
    """A backbone from whatever stands for one.

    Args:
        given: a backbone as it is; `{class_path, init_args}`, a class's name, or the arguments of `FrozenCLIP` alone; a
            function without arguments that makes one; None: `FrozenCLIP` with its defaults.
        trusted: whether the user wrote the class's name. If not, only classes of this package, and such as are loaded
            already, are taken: no other module is imported.

    Raises:
        UserError: a class that is none, arguments that it does not take, what the class itself refuses, or one that
            was given as an object where it was described.
    """
    if isinstance(given, Backbone):
        return given
    if isinstance(given, str):
        given = {"class_path": given}
    with within("model.backbone"):
        if given is None or isinstance(given, Mapping):
            cls, arguments = parse_spec(given, trusted=trusted)
            given = functools.partial(_make, cls, arguments)
        elif not callable(given):
            raise UserError(f"model.backbone: expected a backbone, or class_path and init_args, got {given!r}")
        box = _box.get()
        made = given() if not box else box[0]
        if box is not None and not box:
            box.append(made)
    if not isinstance(made, Backbone):
        raise UserError(f"model.backbone: expected a backbone, got a {type(made).__name__}")
    return made


def parse_spec(given: Mapping[str, Any] | None, *, trusted: bool = False) -> tuple[type[Backbone], dict[str, Any]]:
    """The class that makes a backbone, and its arguments; see `make_backbone`.

    Raises:
        UserError: no such class, or a description that is none.
    """
    content = dict(given or {})
    if not {"class_path", "init_args", "dict_kwargs"} & content.keys():
        content = {"init_args": content}  # the arguments alone
    odd = sorted(content.keys() - {"class_path", "init_args", "dict_kwargs"})
    if odd:
        raise UserError(f"model.backbone: {', '.join(odd)} belongs one level deeper, under init_args")
    arguments: dict[str, Any] = {}
    for key in ("init_args", "dict_kwargs"):
        below = content.get(key) or {}
        if not isinstance(below, Mapping):
            raise UserError(f"model.backbone.{key}: expected a table of arguments, got {below!r}")
        arguments |= below
    if arguments.get("pretrained") == GIVEN:
        raise UserError(
            f"the backbone '{arguments.get('name')}' was given as an object (FrozenViT.from_model, say): give it "
            "again, such as CLTModule.load_from_checkpoint(path, backbone=backbone)"
        )
    return _class(content.get("class_path", DEFAULT_CLASS), trusted), arguments


def spec_of(backbone: Backbone) -> Spec:
    """What makes a backbone like this one, in plain values: its class and the arguments that it was made with.

    Of one that no plain arguments make (`from_model`), its class and name, which `make_backbone` refuses with a word.
    """
    path = short_path(type(backbone))
    arguments = None if "<locals>" in path else _arguments(backbone)
    if arguments is None:
        arguments = {"name": backbone.name, "pretrained": GIVEN, "precision": backbone.precision}
    return {"class_path": path, "init_args": arguments}


def differences(own: Spec, other: Spec) -> dict[str, tuple[Any, Any]]:
    """Settings in which two descriptions would make other backbones, by key; the precision is not one of them.

    A file may lie elsewhere on another machine: of a path of weights the last part counts.
    """
    found = {}
    (a, a_args), (b, b_args) = ((spec["class_path"], spec["init_args"]) for spec in (own, other))
    if a.rpartition(".")[2] != b.rpartition(".")[2]:
        found["class_path"] = (a, b)
    random = a_args.get("pretrained") is None and b_args.get("pretrained") is None
    for key in dict.fromkeys([*a_args, *b_args]):
        x, y = a_args.get(key), b_args.get(key)
        if key == "precision" or (key == "seed" and not random) or key not in a_args or key not in b_args:
            continue
        if key == "pretrained" and x and y:
            x, y = Path(x).name, Path(y).name
        if x != y:
            found[f"init_args.{key}"] = (x, y)
    return found


def _class(name: Any, trusted: bool) -> type[Backbone]:
    import clt_lightning.backbone.clip
    import clt_lightning.backbone.vit  # noqa: F401  (a bare name is looked for among loaded classes)

    loaded = [cls for several in subclasses(Backbone).values() for cls in several]
    for cls in loaded:  # nothing is imported for these
        if name == f"{cls.__module__}.{cls.__qualname__}" or name == cls.__name__:
            return cls
    found: type[Backbone] = load_class(name, Backbone, setting("class_path"), "backbone", trusted=trusted)
    return found


def _make(cls: type[Backbone], arguments: dict[str, Any]) -> Backbone:
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"model.backbone: {cls.__name__}: {error}; it takes {', '.join(inspect.signature(cls).parameters)}"
        ) from error
    return cls(**arguments)


def _arguments(backbone: Backbone) -> dict[str, Any] | None:
    """All arguments by name, defaults included; None if some are no plain values."""
    if backbone.made_with is None:
        return None
    positional, named = backbone.made_with
    bound = inspect.signature(type(backbone)).bind(*positional, **named)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for key, value in bound.arguments.items():
        kind = bound.signature.parameters[key].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            if value:
                return None
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[key] = value
    found = {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}
    return found if _is_plain(found) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or type(value) in (str, int, float, bool)
