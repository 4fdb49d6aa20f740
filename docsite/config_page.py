"""Every key of a config on one page: read off the parser that reads configs."""

from __future__ import annotations

import functools
import html
import importlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

from clt_lightning.cli import help
from clt_lightning.cli.config_cli import config_parser
from clt_lightning.cli.schema import options_of
from docsite.words import beginning, default_words, text_html, type_words

#: What the first sections are about; the others have sentences in the code
SECTIONS = {
    "run": "The run's name, place and seed.",
    "model": "Backbone, transcoder, loss, optimizer, schedule, tokens.",
    "data": "Where images come from: a class and its arguments, listed under [classes](#classes).",
    "trainer": "Lightning's Trainer; its texts are Lightning's own.",
}
#: What the parser has no text for, or one for programmers
HELP = {
    "seed_everything": "seed of all that is drawn: order of the data, initial weights, token draws; true draws a seed.",
    "ckpt_path": help.CKPT["fit"] + ".",
    "data": "the data set: `class_path` and `init_args`; the classes and their arguments are listed below.",
}
#: Places where a config names a class, with the modules whose public classes may stand there
CLASSES = {
    "model.backbone": ("clt_lightning", "Backbone"),
    "model.transcoder.activation": ("clt_lightning.transcoder.activations", "Activation"),
    "model.optimizer": ("clt_lightning.training.optim", "Optimizer"),
    "data": ("clt_lightning.data", "LightningDataModule"),
    "trainer.callbacks": ("clt_lightning.callbacks", "Callback"),
}


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        name: dotted.
        type: in words.
        default: as YAML.
        help: HTML.
    """

    name: str
    type: str
    default: str
    help: str


def keys_of(parser: ArgumentParser) -> list[Key]:
    """The keys that a parser takes, in its order."""
    return [
        Key(o.name, type_words(o.option.type), default_words(o.option.default), text_html(HELP.get(o.name, o.help)))
        for o in options_of(parser)
    ]


@functools.cache
def config_keys() -> tuple[Key, ...]:
    """The keys of a whole config."""
    return tuple(keys_of(config_parser()))


def class_keys(cls: type) -> list[Key]:
    """What a class takes as `init_args`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    return keys_of(parser)


def classes_at(place: str) -> list[type]:
    """The classes of this package that may stand at a place of a config, by name."""
    module_name, base = CLASSES[place]
    module = importlib.import_module(module_name)
    public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    found = [getattr(module, name) for name in sorted(public)]
    return [
        cls
        for cls in found
        if inspect.isclass(cls)
        and cls.__name__ != base
        and not inspect.isabstract(cls)
        and any(parent.__name__ == base for parent in cls.__mro__)
    ]


def page(version: str) -> str:
    """The page, as Markdown."""
    keys = config_keys()
    parts = [beginning("config").replace("{version}", version).replace("{count}", str(len(keys)))]
    for section, of_section in _sections(keys):
        parts.append(f"## {section} {{ #{section} }}\n\n{SECTIONS.get(section, _summary(section))}\n")
        for group, entries in _groups(section, of_section):
            if group:
                parts.append(f"### {group} {{ #{group} }}\n")
            parts.append(entries_html(entries))
    parts.append(
        "## Classes { #classes }\n\nWhere a class is named, its arguments go under `init_args`. Bare names are enough "
        "for these; `--data.help CIFAR100` and the like explain them on the command line. Your own classes are named "
        "by a dotted path.\n"
    )
    for place in CLASSES:
        parts.append(f"### For {place} {{ #classes-{place} }}\n")
        for cls in classes_at(place):
            entries = class_keys(cls)
            summary = text_html((inspect.getdoc(cls) or "").split("\n\n")[0])
            parts.append(
                f'<h4 id="class-{cls.__name__}"><code>{cls.__name__}</code></h4>\n<p>{summary}</p>\n\n'
                + (entries_html(entries, f"{cls.__name__}.") if entries else "It takes no arguments.\n")
            )
    return "\n".join(parts)


def entries_html(keys: Iterable[Key], anchor: str = "") -> str:
    """Keys as a list of definitions; each has an anchor of its name."""
    rows = []
    for key in keys:
        rows.append(
            f'<dt id="{html.escape(anchor + key.name)}"><code>{html.escape(key.name)}</code> '
            f'<span class="type">{html.escape(key.type)}</span> '
            f'<span class="default">default: <code>{html.escape(key.default)}</code></span></dt>\n'
            f"<dd>{key.help}</dd>"
        )
    return '<dl class="keys">\n' + "\n".join(rows) + "\n</dl>\n"


def _sections(keys: Iterable[Key]) -> Iterator[tuple[str, list[Key]]]:
    sections: dict[str, list[Key]] = {}
    for key in keys:
        first, _, rest = key.name.partition(".")
        sections.setdefault(first if rest or first == "data" else "run", []).append(key)
    known = [name for name in SECTIONS if name in sections]
    for name in dict.fromkeys([*known, *sections]):
        yield name, sections[name]


def _groups(section: str, keys: list[Key]) -> Iterator[tuple[str, list[Key]]]:
    """`model` by its blocks, others as one."""
    groups: dict[str, list[Key]] = {}
    for key in keys:
        parts = key.name.split(".")
        deep = section == "model" or (section == "evaluate" and len(parts) > 2)
        groups.setdefault(".".join(parts[:2]) if deep and len(parts) > 1 else "", []).append(key)
    yield from groups.items()


@functools.cache
def _titles() -> dict[str, Any]:
    return {key: group.title for key, group in (config_parser().groups or {}).items()}


def _summary(section: str) -> Any:
    title = str(_titles().get(section) or "")
    return title[:1].upper() + title[1:] + ("" if title.endswith(".") else ".") if title else ""
