"""Links within the repository lead somewhere, and every page is in the site's navigation."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from docsite.places import made_addresses
from tests.docs.blocks import ROOT, pages

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} (.+)$", prose(path), re.MULTILINE):
        plain = re.sub(r"[`*]|\{[^}]*\}", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title))
        name = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode().lower()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", name).strip()))
    return found


def broken(page: Path, made: set[str], root: Path = ROOT) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for target in LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        address = place.relative_to(root / "docs").as_posix() if place.is_relative_to(root / "docs") else ""
        if address in made:
            continue  # the build checks it
        missing = not place.exists()
        if missing or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
            found.append(f"{page.relative_to(root)}: {target}")
    return found


def test_links_lead_somewhere() -> None:
    made = made_addresses()
    names = [*pages(), "CHANGELOG.md", "CONTRIBUTING.md"]
    assert not [link for name in names for link in broken(ROOT / name, made)]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[a](b.md)", ["b.md"]),
        ("[a](#here)\n# Here", []),
        ("[a](#there)\n# Here", ["#there"]),
        ("# A `b.c`: [d](e.md), f\n[a](#a-bc-d-f)", ["e.md"]),
        ("```\n[a](b.md)\n```\n[w](https://x.org/b.md)", []),
        ("![p](no.png)", ["no.png"]),
    ],
)
def test_a_broken_link_is_found(text: str, left: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert broken(page, set(), tmp_path) == [f"page.md: {target}" for target in left]


def test_every_page_is_in_the_navigation_once() -> None:
    def leaves(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [leaf for value in node.values() for leaf in leaves(value)]
        return [leaf for entry in node for leaf in leaves(entry)] if isinstance(node, list) else [node]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Passes over the tags of mkdocs."""

    named = leaves(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted({*there, *made_addresses()}), "mkdocs.yml, nav: a page is missing or named twice"


def test_every_picture_is_shown_and_small() -> None:
    shown = {Path(target).name for name in pages() for target in LINK.findall(prose(ROOT / name))}
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.name in shown, path
        assert path.stat().st_size < 400_000, path


def test_files_that_are_named_are_there() -> None:
    package = ROOT / "clt_lightning"
    every = [path.relative_to(ROOT).as_posix() for folder in (package, ROOT / "tests") for path in folder.rglob("*.py")]
    missing = []
    for page in pages():
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", prose(ROOT / page)):
            if not ((ROOT / name).exists() or any(path.endswith(f"/{name}") for path in every)):
                missing.append(f"{page}: {name}")
    table = (ROOT / "README.md").read_text().split("## How the pieces fit")[1].split("Read these first")[0]
    missing += [f"README.md: {name}" for name in re.findall(r"`((?:\w+/)+)`", table) if not (package / name).is_dir()]
    assert not missing
