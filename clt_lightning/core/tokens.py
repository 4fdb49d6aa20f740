"""The token sets of a Vision Transformer, and at which positions each of them stands: the one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clt_lightning.core.errors import UserError

TOKEN_SETS = ("cls", "register", "patch", "all")
#: What their names say in a sentence
TOKEN_NAMES = {"cls": "[CLS]", "register": "registers", "patch": "patches", "all": "all tokens"}
_ONE = {"cls": "[CLS] token", "register": "register token", "patch": "patch"}


@dataclass(frozen=True)
class TokenLayout:
    """Which positions of an image's tokens are [CLS], registers and patches.

    Attributes:
        n_patches: patches of the grid.
        has_cls: whether position 0 is a [CLS] token.
        n_registers: tokens that are neither [CLS] nor patches: registers, and DeiT's distillation token.
        registers_last: registers stand after the patches, not between [CLS] and the patches.
    """

    n_patches: int
    has_cls: bool = True
    n_registers: int = 0
    registers_last: bool = False

    @classmethod
    def plain(cls, n_positions: int) -> TokenLayout:
        """[CLS] first, then patches: the layout of OpenAI's CLIP."""
        return cls(n_positions - 1)

    @property
    def n_positions(self) -> int:
        """Tokens of an image."""
        return int(self.has_cls) + self.n_registers + self.n_patches

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.has_cls) + (0 if self.registers_last else self.n_registers)

    @property
    def sets(self) -> tuple[str, ...]:
        """The token sets that hold tokens, in the order of `TOKEN_SETS`; `all` always."""
        return tuple(name for name in TOKEN_SETS if name == "all" or self._span(name).start < self._span(name).stop)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The sets that divide an image's tokens among them: `sets` without `all`."""
        return self.sets[:-1]

    def span(self, token_set: str) -> slice:
        """The positions of a token set.

        Raises:
            UserError: an unknown set, or one of which this layout has no token.
        """
        if token_set not in TOKEN_SETS:
            raise UserError(f"unknown token set '{token_set}': choose one of {', '.join(TOKEN_SETS)}")
        if token_set not in self.sets:
            have = ", ".join(self.sets)
            raise UserError(f"tokens '{token_set}': this backbone has no {_ONE[token_set]}; it has {have}")
        return self._span(token_set)

    def size(self, token_set: str) -> int:
        """Tokens of an image that belong to a set; 0 for one that this layout lacks."""
        span = self._span(token_set)
        result: int = span.stop - span.start
        return result

    def kind_of_positions(self) -> list[int]:
        """Of each position the index of its set in `kinds`."""
        found = [0] * self.n_positions
        for index, name in enumerate(self.kinds):
            span = self._span(name)
            found[span] = [index] * (span.stop - span.start)
        return found

    def _span(self, token_set: str) -> slice:
        cls = int(self.has_cls)
        patches = self.n_prefix
        registers = patches + self.n_patches if self.registers_last else cls
        return {
            "cls": slice(0, cls),
            "register": slice(registers, registers + self.n_registers),
            "patch": slice(patches, patches + self.n_patches),
            "all": slice(0, self.n_positions),
        }[token_set]


def check_token_sets(
    names: Sequence[str], *, option: str = "token_sets", layout: TokenLayout | None = None
) -> tuple[str, ...]:
    """Check a list of token sets from a config.

    Args:
        names: any of `TOKEN_SETS`, without repeats.
        option: the config key, for the message.
        layout: of the backbone, where it is known: sets that it lacks are then refused.

    Returns:
        The names as a tuple.

    Raises:
        UserError: an unknown, repeated or missing name, a bare string, or a set of which the backbone has no token.
    """
    if isinstance(names, str):
        raise UserError(f"{option} must be a list of token sets, such as [{names}], got the string {names!r}")
    wrong = [name for name in names if name not in TOKEN_SETS]
    if wrong or not names or len(set(names)) != len(names):
        raise UserError(f"{option}={list(names)}: expected one or more of {list(TOKEN_SETS)}, each at most once")
    if layout is not None:
        for name in names:
            try:
                layout.span(name)
            except UserError as error:
                raise UserError(f"{option}={list(names)}: {error}") from error
    return tuple(names)


def present(
    names: Sequence[str] | None,
    layout: TokenLayout,
    option: str = "token_sets",
    default: Sequence[str] = TOKEN_SETS,
) -> tuple[str, ...]:
    """The token sets to measure: those that were asked for; of the default those that the backbone has.

    Raises:
        UserError: one was asked for of which the backbone has no token.
    """
    if names is None or list(names) == list(default):
        return tuple(name for name in default if name in layout.sets)
    return check_token_sets(names, option=option, layout=layout)
