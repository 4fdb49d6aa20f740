"""What mkdocs calls while it builds: pages made from code or kept elsewhere in the repository, and formulas."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

from clt_lightning import __version__
from docsite import api_pages, commands_page, config_page, errors_page
from docsite.formulas import with_mathml
from docsite.places import DOWNLOADS, ELSEWHERE, ROOT, configs


def made_pages() -> dict[str, str]:
    """Address -> Markdown of all pages that are not files in docs/."""
    made = {
        "reference/config.md": config_page.page(__version__),
        "reference/commands.md": commands_page.page(),
        "reference/errors.md": errors_page.page(),
        **{f"reference/api/{name}": text for name, text in api_pages.pages().items()},
    }
    for address, source in ELSEWHERE.items():
        made[address] = (ROOT / source).read_text(encoding="utf-8")
    return made


def on_files(files: Files, config: Any) -> Files:
    """Adds the made pages, the downloads, and every config as a file."""
    for address, text in made_pages().items():
        files.append(File.generated(config, address, content=text))
    for name in (*DOWNLOADS, *configs()):
        files.append(File.generated(config, f"files/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that leave docs/ lead to the page or file that the site has for them."""
    places = {source: address for address, source in ELSEWHERE.items()}
    source_folder = posixpath.dirname(ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    here = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        if "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        place = posixpath.normpath(posixpath.join(source_folder, target))
        if place in places:
            address = places[place]
        elif place in (*DOWNLOADS, *configs()):
            address = f"files/{place}"
        elif place.startswith("docs/") and page.file.src_uri in ELSEWHERE:
            address = place.removeprefix("docs/")
        else:
            return found[0]
        return f"{found[1]}{posixpath.relpath(address, here or '.')}{anchor})"

    return re.sub(r"(\]\()([^)\s#]+)(#[^)]*)?\)", moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas become MathML."""
    return with_mathml(html)
