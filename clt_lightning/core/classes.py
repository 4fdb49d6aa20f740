"""Classes that a config names: found, and checked before anything of a config that somebody else wrote is imported."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Self

from clt_lightning.core.errors import UserError

#: Packages whose classes any config may name
KNOWN_PACKAGES = ("clt_lightning", "lightning", "torch")


#: So many names are all shown; of more, the nearest
_FEW, _MANY = 8, 20
Bases = type | tuple[type, ...]


def load_class(name: str, base: Bases, where: str, what: str = "class", *, trusted: bool = True) -> type:
    """The class of a name from a config.

    Args:
        name: a dotted path, or the bare name of a subclass that is loaded.
        base: what it must be a subclass of; of one of several.
        where: the key (and file) that names it, for the message; may be empty.
        what: what such a class is called in a message, such as `data set`.
        trusted: whether the user wrote the config. If not, only classes of `KNOWN_PACKAGES` are taken, and no other
            module is imported.

    Raises:
        UserError: there is no such class, it is of another kind, or the config may not name it.
    """
    where = f"{where}: " if where and not where.endswith(": ") else where
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{where}{name!r} is not the name of a class{_there_are(str(name), base, what)}")
    if "." not in name:
        return _by_name(name, base, where, what, trusted)
    if not trusted and not is_known(name):
        raise UserError(
            f"{where}{name} is not a class of {', '.join(KNOWN_PACKAGES)}, so it was not loaded: this config came "
            "with the run, and loading it would run code of its choice. If you trust it, add --trust_config"
        )
    found = _lookup(name, base, where, what)
    if not inspect.isclass(found) or not issubclass(found, base):
        raise UserError(f"{where}{name} is no {what}{_there_are(name, base, what)}")
    if not trusted and not is_known(found.__module__):
        raise UserError(f"{where}{name} is not a class of {', '.join(KNOWN_PACKAGES)}, so it was not loaded")
    return found


def find_class(name: str, base: type, where: str, what: str, *, trusted: bool) -> type:
    """The class of a full path from a file that may have come from anybody.

    As `load_class`; where the file is not trusted, a class of another package is taken as well if the user has imported
    it already, since nothing new is run then.

    Raises:
        UserError: there is no such class, it is of another kind, or it may not be imported.
    """
    module, _, last = name.rpartition(".")
    loaded = vars(sys.modules[module]).get(last) if module in sys.modules else None
    if inspect.isclass(loaded) and issubclass(loaded, base):
        return loaded
    if not trusted and not is_known(name):
        raise UserError(
            f"{where}{what} {name} was not loaded: it would run code of the file's choice. If you trust it: trust=True "
            "(--trust_config), or import it first"
        )
    return load_class(name, base, where, what, trusted=trusted)


def make_from(config: Any, base: type, own: Mapping[str, type], what: str, *, trusted: bool) -> Any:
    """What `{"class_path": ..., "init_args": ...}` names.

    Args:
        config: the table.
        base: what the class must be a subclass of.
        own: this package's classes, which go by their bare names.
        what: what such a thing is called in a message, such as `activation`.
        trusted: whether the user wrote the table; see `find_class`.

    Raises:
        UserError: no such class, one that may not be imported, or arguments that it does not take.
    """
    article = "an" if what[0] in "aeiou" else "a"
    if not isinstance(config, Mapping) or "class_path" not in config:
        raise UserError(f"{article} {what} is {{class_path: ..., init_args: ...}}, got {config!r}")
    path = str(config["class_path"])
    cls: Any = own.get(path)
    if cls is None and "." not in path:
        there = f"; there are {', '.join(own)}, and any other" if own else ": write it"
        raise UserError(f"unknown {what} {path!r}{there} by its full path, such as my_package.{path or 'Mine'}")
    if cls is None:
        cls = find_class(path, base, "", what, trusted=trusted)
    arguments = config.get("init_args") or {}
    known = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if not isinstance(arguments, Mapping) or (set(arguments) - set(known) and not takes_any):
        takes = ", ".join(known) or "no arguments"
        raise UserError(f"{what} {cls.__name__} takes {takes}; got init_args {arguments!r}")
    try:
        return cls(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} {cls.__name__}: {arguments!r}: {error}") from error


def name_of(cls: type) -> str:
    """What a file calls a class: one of this package's by its bare name, any other by its full path."""
    own = cls.__module__.split(".")[0] == __name__.split(".")[0] and cls.__module__ in sys.modules
    return cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}"


def arguments_of(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a class by name, defaults included; empty where they do not fit."""
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)  # type: ignore[misc]
    except TypeError:  # the call itself will say so; a copy is made without arguments
        return {}
    bound.apply_defaults()
    _, *parameters = bound.signature.parameters.values()
    given: dict[str, Any] = {}
    for parameter in parameters:
        value = bound.arguments[parameter.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= value
        elif parameter.kind is not parameter.VAR_POSITIONAL or value:
            given[parameter.name] = value
    return {name: _plain_number(value) for name, value in given.items()}


class Recorded:
    """What is made from a config and can be written into one again: it keeps the arguments of its `__init__`."""

    _given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the arguments, for `init_args`."""
        made = super().__new__(cls)
        made.__dict__["_given"] = arguments_of(cls, args, kwargs)
        return made

    def init_args(self) -> dict[str, Any]:
        """The arguments it was made with, defaults included."""
        return dict(self._given)

    def config(self) -> dict[str, Any]:
        """`{"class_path": name, "init_args": arguments}`: what makes the same object again."""
        return {"class_path": name_of(type(self)), "init_args": self.init_args()}


def _plain_number(value: Any) -> Any:
    """A number of numpy's as Python's own; anything else as it is."""
    plain = type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0
    return value.item() if plain else value


def check_loadable(cls: type, arguments: Mapping[str, Any], what: str) -> None:
    """Whether an object can be made again in another process, from the name of its class and its arguments.

    Args:
        cls: of the object.
        arguments: of its `__init__`.
        what: what it is, with its key: `model.transcoder.activation`.

    Raises:
        UserError: the class cannot be imported by name, or an argument is no plain value.
    """
    path = f"{cls.__module__}.{cls.__qualname__}"
    where = f"{what}: {path} could not be loaded again from the run's files"
    if cls.__module__ == "__main__":
        raise UserError(f"{where}: it is defined in the script that was started. Put it into a module and import it")
    if "<locals>" in cls.__qualname__ or "<lambda>" in cls.__qualname__:
        raise UserError(f"{where}: it is defined inside a function. Define it at the top level of its module")
    try:
        found = vars(importlib.import_module(cls.__module__)).get(cls.__qualname__)
    except ImportError:
        found = None
    if found is not cls:
        raise UserError(f"{where}: importing {cls.__module__} does not give this class under {cls.__qualname__}")
    names = inspect.signature(cls.__init__).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in names.values())
    for name, value in arguments.items():
        if name not in names and not takes_any:
            raise UserError(f"{where}: init_args() names {name}, which its __init__ does not take")
        try:
            plain = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            plain = None
        if plain != (list(value) if isinstance(value, tuple) else value):
            raise UserError(
                f"{where}: its argument {name} is {value!r}, and files hold plain values alone (numbers, texts, lists, "
                "tables of them)"
            )
    missing = [
        name
        for name, p in list(names.items())[1:]
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in arguments
    ]
    if missing:
        raise UserError(f"{where}: init_args() does not name its argument {missing[0]}")


def is_known(name: str) -> bool:
    """Whether a dotted name lies in the public part of one of `KNOWN_PACKAGES`."""
    package, *rest = name.split(".")
    return package in KNOWN_PACKAGES and not any(part.startswith("__") for part in rest)


def subclasses(base: Bases) -> dict[str, list[type]]:
    """All loaded, public, complete subclasses of a class (and itself) by bare name."""
    found: dict[str, list[type]] = {}
    for cls in dict.fromkeys(c for b in _several(base) for c in _all_subclasses(b)):
        hidden = cls.__name__.startswith("_") or "._" in f".{cls.__module__}" or "<locals>" in cls.__qualname__
        if not hidden and not inspect.isabstract(cls) and not _is_example(cls.__module__):
            found.setdefault(cls.__name__, []).append(cls)
    return found


def short_path(cls: type) -> str:
    """The shortest public dotted path of a class, such as `clt_lightning.training.optim.AdamW`."""
    parts = cls.__module__.split(".")
    for end in range(1, len(parts)):
        module = ".".join(parts[:end])
        loaded = importlib.import_module(module)
        if vars(loaded).get(cls.__name__) is cls:
            return f"{module}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def nearest(word: str, words: Iterable[str], n: int = 3) -> list[str]:
    """Those of `words` that look like `word`, the nearest first; capitals do not count."""
    by_lower = {w.lower(): w for w in words}
    return [by_lower[w] for w in difflib.get_close_matches(word.lower(), list(by_lower), n=n, cutoff=0.55)]


def known_names(base: Bases, own: bool = False) -> list[str]:
    """Names that a config may give for a class: bare, or dotted where two classes share the bare name.

    Args:
        base: what they are subclasses of; of one of several.
        own: of this package alone.
    """
    names, found = [], subclasses(base)
    for name, every in found.items():
        classes = [cls for cls in every if not own or cls.__module__.split(".")[0] == KNOWN_PACKAGES[0]]
        if not classes:
            continue
        if len(found) > 1 and set(classes) & set(_several(base)):
            continue
        names += [name] if len(classes) == 1 else [short_path(cls) for cls in classes]
    return sorted(names)


def _by_name(name: str, base: Bases, where: str, what: str, trusted: bool) -> type:
    found = subclasses(base).get(name, [])
    if not trusted:
        found = [cls for cls in found if is_known(cls.__module__)]
    known = [cls for cls in found if is_known(cls.__module__)]
    if len(known) == 1:  # a bare name means the one that comes along; others go by their full path
        return known[0]
    if len(found) > 1:
        raise UserError(f"{where}there are several {name}: {' or '.join(map(short_path, found))}")
    if not found:
        raise UserError(f"{where}there is no {what} {name!r}{_there_are(name, base, what)}")
    return found[0]


def _lookup(name: str, base: Bases, where: str, what: str) -> object:
    module_name, _, last = name.rpartition(".")
    try:
        holder: ModuleType = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise UserError(
                f"{where}there is no {what} {name!r} (no module {missing}){_there_are(last, base, what)}"
            ) from error
        raise UserError(f"{where}{name} needs the package {missing}, which is not installed") from error
    except ImportError as error:
        raise UserError(f"{where}{module_name} cannot be imported: {error}") from error
    found = getattr(holder, last, None)
    if found is None:
        raise UserError(f"{where}{module_name} has no {last!r}{_there_are(last, base, what)}")
    return found


def _there_are(name: str, base: Bases, what: str) -> str:
    """`; there are: CIFAR100, COCO, Demo`: all names, or the nearest where there are many."""
    names = known_names(base)
    last = name.rpartition(".")[2]
    near = [n for n in names if n.rpartition(".")[2] in nearest(last, [n.rpartition(".")[2] for n in names], n=5)]
    if not names:
        return ""
    if len(names) > _FEW:  # other packages' and the user's own may be many
        own = known_names(base, own=True)
        if 0 < len(own) <= _FEW:
            others = [n for n in near if n not in own]
            return f"; there are: {', '.join(own + others)}"
    if len(names) > _FEW and near:
        return f"; nearest: {', '.join(near)}"
    more = f" and {len(names) - _MANY} more (--help lists them)" if len(names) > _MANY else ""
    return f"; there are: {', '.join(names[:_MANY])}{more}"


def _several(base: Bases) -> tuple[type, ...]:
    return base if isinstance(base, tuple) else (base,)


def _all_subclasses(base: type) -> Iterator[type]:
    yield base
    below: list[type] = type.__subclasses__(base)
    for cls in below:
        yield from _all_subclasses(cls)


def _is_example(module: str | None) -> bool:
    if module is None:  # a class that was made without one: nobody can name it
        return True
    return ".demos." in f".{module}." or module.startswith("torchmetrics")
