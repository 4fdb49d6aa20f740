"""What the site has that is no file in docs/."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Pages of the site that are files of the repository outside docs/
ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "cluster-slurm.md": "slurm/README.md",
    "cluster-docker.md": "docker/README.md",
}
#: Files outside docs/ that pages link to, to take away
DOWNLOADS = ("examples/quickstart.ipynb", "examples/explain_one_image.py", "CITATION.cff")


def configs() -> list[str]:
    """The shipped configs, by their path in the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def made_addresses() -> set[str]:
    """Pages that are made when the site is built, by their path in docs/."""
    from docsite.api_pages import PAGES

    reference = {f"reference/{name}.md" for name in ("config", "commands", "errors")}
    return {*ELSEWHERE, *reference, *(f"reference/api/{page}.md" for page in PAGES)}
