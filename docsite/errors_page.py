"""Every message that a user's mistake can end in: read off the places that raise them."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path

from docsite.words import beginning

PACKAGE = Path(__file__).parent.parent / "clt_lightning"
#: Parts of the package, in the order of a reader's first day
PARTS = {
    "cli": "Command line and configs",
    "data": "Data",
    "backbone": "Backbones and weights",
    "transcoder": "Transcoders and their files",
    "training": "Training",
    "runs": "Runs, checkpoints, resume",
    "callbacks": "Callbacks",
    "parallel": "Several processes",
    "metrics": "Metrics",
    "interventions": "Replacement and interventions",
    "analysis": "Analysis and circuits",
    "report": "Reports",
    "server": "serve",
    "core": "Files, paths and the rest",
}
_RAISED = ("UserError",)


def page() -> str:
    """The page, as Markdown."""
    by_part: dict[str, dict[str, str]] = {}
    for part, where, message in messages():
        by_part.setdefault(part, {}).setdefault(message, where)
    count = sum(len(found) for found in by_part.values())
    parts = [beginning("errors").replace("{count}", f"{count:,}")]
    for part in sorted(by_part, key=lambda p: list(PARTS).index(p) if p in PARTS else len(PARTS)):
        parts.append(f"### {PARTS.get(part, part)} {{ #{part} }}\n")
        entries = sorted(by_part[part].items(), key=lambda entry: re.sub(r"‹[^›]*›|\W", "", entry[0]).lower())
        rows = (f"<li><code>{html.escape(text)}</code></li>" for text, _ in entries)
        parts.append('<ul class="messages">\n' + "\n".join(rows) + "\n</ul>\n")
    return "\n".join(parts)


def messages() -> Iterator[tuple[str, str, str]]:
    """(part, module, message) of every place that raises; messages that pass another's text on are left out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        part = inside.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _RAISED and node.args:
                text = _text(node.args[0])
                if len(re.sub(r"‹[^›]*›|\W", "", text)) >= 8:  # its own words
                    yield part, inside.as_posix(), text


def _text(node: ast.expr) -> str:
    """A message with its gaps as ‹name›."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        chosen = [_text(node.body), _text(node.orelse)]
        words = [text for text in chosen if text.strip()]
        return " / ".join(words) if len(words) > 1 else f"[{words[0]}]" if words else ""
    return f"‹{_name(node)}›"


def _name(node: ast.expr) -> str:
    """A word for what fills a gap."""
    if isinstance(node, ast.Name):
        return node.id.strip("_").lower()
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").lower()
    if isinstance(node, ast.Call):
        method = isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Constant)
        if node.args and not method:  # str(x), sorted(x), ", ".join(x)
            return _name(node.args[-1])
        return _name(node.func.value if isinstance(node.func, ast.Attribute) else node.func)
    if isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp):
        return _name(node.elt)
    if isinstance(node, ast.Starred):
        return _name(node.value)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return "…"
