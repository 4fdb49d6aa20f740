"""Classes that a config names: found, and checked before anything of a config that somebody else wrote is imported."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType

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


def known_names(base: Bases) -> list[str]:
    """Names that a config may give for a class: bare, or dotted where two classes share the bare name."""
    names, found = [], subclasses(base)
    for name, classes in found.items():
        if len(found) > 1 and set(classes) & set(_several(base)):
            continue
        names += [name] if len(classes) == 1 else [short_path(cls) for cls in classes]
    return sorted(names)


def _by_name(name: str, base: Bases, where: str, what: str, trusted: bool) -> type:
    found = subclasses(base).get(name, [])
    if not trusted:
        found = [cls for cls in found if is_known(cls.__module__)]
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
