"""What the pages may ask, checked: numbers and words from a browser are as likely wrong as any user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from clt_lightning.analysis.circuits.nodeset import NodeSet
from clt_lightning.analysis.steering import Edit, Kind
from clt_lightning.core.errors import UserError
from clt_lightning.server.http import MOST_QUESTION, MOST_UPLOAD, Answer, Call, LocalServer
from clt_lightning.server.session import MOST_SETS, MOST_TARGETS, Session


def connect(server: LocalServer, session: Session) -> None:
    """Lets a server answer from a session."""
    calls: dict[str, tuple[Callable[[Call], Answer], int]] = {
        "about": (lambda call: session.about(), MOST_QUESTION),
        "thumbnails": (lambda call: {"pictures": session.thumbnails(_numbers(call.json(), "images"))}, MOST_QUESTION),
        "drop": (lambda call: session.drop(_name(call), call.body), MOST_UPLOAD),
        "pick": (lambda call: session.pick(_text(call.json(), "key")), MOST_QUESTION),
        "page": (lambda call: session.page(_text(call.json(), "image")), MOST_QUESTION),
        "codes": (lambda call: _codes(session, call.json()), MOST_QUESTION),
        "steer": (lambda call: _steer(session, call.json()), MOST_QUESTION),
        "flips": (lambda call: _flips(session, call.json()), MOST_QUESTION),
        "intervene": (lambda call: _intervene(session, call.json()), MOST_QUESTION),
        "search": (lambda call: session.search(_text(call.json(), "phrase")), MOST_QUESTION),
    }
    server.calls = calls


def _name(call: Call) -> str:
    name = "".join(letter for letter in call.query.get("name", "") if letter.isprintable()).strip()
    return name[-80:] or "the file"


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise UserError(f"{key}: expected a text")
    return value


def _number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{what}: expected a whole number")
    return value


def _numbers(content: dict[str, Any], key: str) -> list[int]:
    values = content.get(key)
    if not isinstance(values, list) or len(values) > 1024:
        raise UserError(f"{key}: expected a list of at most 1024 numbers")
    return [_number(value, key) for value in values]


def _codes(session: Session, content: dict[str, Any]) -> dict[str, Any]:
    pairs = content.get("features")
    if not isinstance(pairs, list) or len(pairs) > 64:
        raise UserError("features: expected a list of at most 64 pairs of layer and feature")
    wanted = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError("features: expected pairs of layer and feature")
        wanted.append((_number(pair[0], "layer"), _number(pair[1], "feature")))
    return {"codes": session.codes(_text(content, "image"), wanted)}


def _edits(content: dict[str, Any]) -> list[Edit]:
    entries = content.get("edits")
    if not isinstance(entries, list):
        raise UserError("edits: expected a list")
    edits = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise UserError("edits: expected layer, feature, kind and value")
        value = entry.get("value")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError("value: expected a number")
        kind: Kind = entry.get("kind")  # type: ignore[assignment]
        if kind not in ("set", "scale", "add"):
            raise UserError("kind: expected set, scale or add")
        position = entry.get("position")
        edits.append(
            Edit(
                _number(entry.get("layer"), "layer"),
                _number(entry.get("feature"), "feature"),
                kind,
                float(value),
                None if position is None else _number(position, "position"),
            )
        )
    return edits


def _targets(content: dict[str, Any]) -> list[str]:
    names = content.get("targets")
    if not isinstance(names, list) or not 1 <= len(names) <= MOST_TARGETS or not all(isinstance(n, str) for n in names):
        raise UserError(
            f"targets: expected a list of at most {MOST_TARGETS} names, each a class, a caption in double quotes, or a "
            "difference of two"
        )
    return names


def _intervene(session: Session, content: dict[str, Any]) -> dict[str, Any]:
    sets = content.get("sets")
    if not isinstance(sets, list) or not 1 <= len(sets) <= MOST_SETS or not all(isinstance(one, dict) for one in sets):
        raise UserError(f"sets: expected a list of at most {MOST_SETS} sets of nodes")
    return session.intervene(_text(content, "image"), [NodeSet.from_json(one) for one in sets], _targets(content))


def _places(content: dict[str, Any]) -> tuple[str, str]:
    places = content.get("tokens", "all"), content.get("base", "original")
    if not all(isinstance(place, str) for place in places):
        raise UserError("tokens and base: expected words")
    return places


def _steer(session: Session, content: dict[str, Any]) -> dict[str, Any]:
    return session.steer(_text(content, "image"), _edits(content), *_places(content))


def _flips(session: Session, content: dict[str, Any]) -> Answer:
    return session.flips(_edits(content), *_places(content))
