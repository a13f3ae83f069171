"""Text that others wrote: safe to display, and JSON read strictly."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

# Beside control characters (category C), those that draw nothing or change the direction of what follows.
_UNSEEN = {"Zl", "Zp"}


def visible(text: object, limit: int | None = None) -> str:
    """``text`` with what cannot be seen spelled out, so that no name can pose as another or turn the line around.

    Control and direction characters become ``‹U+202E›``. This is for reading: escaping for HTML comes after it.

    Args:
        text: anything; its ``str``.
        limit: the longest result; the middle of a longer one is left out.
    """
    parts = []
    for letter in str(text):
        category = unicodedata.category(letter)
        hidden = category in _UNSEEN or category.startswith("C")
        parts.append(f"‹U+{ord(letter):04X}›" if hidden else letter)
    shown = "".join(parts)
    if limit is None or len(shown) <= limit:
        return shown
    head = (limit - 1) * 2 // 3
    return f"{shown[:head]}…{shown[len(shown) - (limit - 1 - head) :]}"


class RepeatedKeyError(ValueError):
    """A JSON object repeats a key, and parsers disagree on which value counts."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"the key {key!r} is given twice")


def strict_json(text: str) -> Any:
    """Parse JSON whose objects have no key twice.

    Raises:
        RepeatedKeyError: naming the key; ValueError, RecursionError: if it is no JSON.
    """
    return json.loads(text, object_pairs_hook=_once_each)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return result


def counted(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


_READ_AS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def as_text(value: Any) -> Any:
    """A cell of a table as a spreadsheet takes it for text: with an apostrophe before what it would compute."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_READ_AS_FORMULA) else value


def visible_lines(text: str) -> str:
    """:func:`visible` of each line."""
    return "\n".join(map(visible, text.split("\n")))
