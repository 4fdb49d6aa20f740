"""Zero-shot prompts: a template and a class name make one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clt_lightning.core.errors import UserError

PLACEHOLDERS = ("{c}", "{class}", "{}")
Template = str | Callable[[str], str]


def fill(template: Template, classname: str) -> str:
    """Put a class name into a template.

    Args:
        template: a sentence with `{c}`, `{}` or `{class}` where the name goes, or a function of the name.
        classname: the name, taken literally.

    Raises:
        UserError: if the template has no place for the name.
    """
    if callable(template):
        return template(classname)
    # a plain replace, not str.format: braces elsewhere in a template or in a name are just characters
    for placeholder in PLACEHOLDERS:
        if placeholder in template:
            return template.replace(placeholder, classname)
    raise UserError(f"template '{template}' has no place for the class name: write {{c}} where it goes")


def check_prompts(classnames: Sequence[str], templates: Sequence[Template]) -> None:
    """Raise a UserError for empty or misshapen class names and templates, before any of them is encoded."""
    for words, what in ((classnames, "classnames"), (templates, "templates")):
        if isinstance(words, str):
            raise UserError(f"{what} must be a list, got the single string '{words}'")
        if not words:
            raise UserError(f"{what} is empty: a zero-shot head needs at least one")
    for template in templates:
        fill(template, "x")
