"""The site builds without a warning and without a network, and holds what it promises."""

from __future__ import annotations

import html.parser
import importlib.util
import inspect
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

import clt_lightning
from clt_lightning.cli.main import COMMANDS, TRAINER_COMMANDS
from docsite import commands_page, config_page, errors_page
from docsite.words import default_words, text_html, type_words
from tests.docs.blocks import ROOT


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "whole number"),
        (int | None, "whole number or null"),
        (str | Path | None, "path or null"),
        (bool | int, "true or false or whole number"),
        (list[str], "list of text"),
    ],
)
def test_types_in_words(hint: object, words: str) -> None:
    assert type_words(hint) == words


def test_defaults_and_texts_in_words() -> None:
    assert default_words(None) == "null"
    assert default_words(("a", 1)) == "[a, 1]"
    assert default_words({"class_path": "x.y.TopK", "init_args": {"k": 64}}) == "{class_path: TopK, init_args: {k: 64}}"
    assert text_html("a <b> ``c`` and\n:class:`~x.y.D`") == "a &lt;b&gt; <code>c</code> and <code>D</code>"


def test_every_command_is_on_its_page() -> None:
    text = commands_page.page()
    for name in (*COMMANDS, *TRAINER_COMMANDS):
        assert f"## {name} " in text
    assert "`--validate-images" in text
    assert "### shard cifar100 " in text


def test_messages_are_read_off_the_code() -> None:
    messages = {text for _, _, text in errors_page.messages()}
    assert len(messages) > 400
    assert "--run is given more than once" in messages
    assert any(text.startswith("unknown command ‹words›") for text in messages)
    parts = {part for part, _, _ in errors_page.messages()}
    assert parts - {"compat"} <= {*errors_page.PARTS}


def test_every_key_has_a_type_and_a_text() -> None:
    keys = {key.name: key for key in config_page.config_keys()}
    assert keys["model.transcoder.n_features"].type == "whole number"
    assert keys["model.transcoder.n_features"].default == "6144"
    assert keys["model.loss.cascade.stream"].help
    assert not [name for name, key in keys.items() if not key.help], "an argument without a line in its docstring"
    for place in config_page.CLASSES:
        assert config_page.classes_at(place), place


class _Page(html.parser.HTMLParser):
    """The links, anchors and fetched files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.words = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attributes}
        self.anchors.update(told[name] for name in ("id", "name") if name in told)
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        if tag in ("script", "img", "iframe") and "src" in told:
            self.fetched.append(told["src"])
        if tag == "link" and told.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.fetched.append(told["href"])


@pytest.mark.slow
def test_the_site_builds_clean_offline_and_whole(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: `make docs` installs what builds the site")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    pages = {path.relative_to(site).as_posix(): _Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 40

    for name, page in pages.items():
        for address in page.fetched:
            assert "://" not in address, f"{name} fetches {address}"
        if name == "404.html":  # its addresses are those of a server's root
            continue
        for link in page.links:
            if "://" in link or link.startswith("mailto:"):
                continue
            path, _, anchor = urllib.parse.unquote(link).partition("#")
            place = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            assert (site / place).is_file(), f"{name}: {link}"
            assert not anchor or place not in pages or anchor in pages[place].anchors, f"{name}: {link}"

    keys = pages["reference/config.html"].anchors
    assert {key.name for key in config_page.config_keys()} <= keys
    described = {anchor for name, page in pages.items() if "/api/" in name for anchor in page.anchors}
    for name in clt_lightning.__all__:
        value = getattr(clt_lightning, name)
        if not inspect.ismodule(value):
            assert f"{value.__module__}.{value.__qualname__}" in described, name
    method = (site / "background" / "method.html").read_text(encoding="utf-8")
    assert method.count("<math") > 20
    assert "arithmatex" not in method
