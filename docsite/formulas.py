"""Formulas as MathML, made when the site is built: browsers draw it without a script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

# what pymdownx.arithmatex leaves in its generic form
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)


def with_mathml(page: str) -> str:
    """A page's HTML with every formula as MathML.

    Raises:
        ValueError: LaTeX that cannot be read, with the formula.
    """
    return _FORMULA.sub(lambda found: _mathml(html.unescape(found[3]).strip(), found[2] == "["), page)


def _mathml(latex: str, block: bool) -> str:
    try:
        made = convert(latex, display="block" if block else "inline")
    except Exception as error:
        raise ValueError(f"formula {latex!r}: {type(error).__name__} {error}") from error
    return f'<div class="formula">{made}</div>' if block else made
