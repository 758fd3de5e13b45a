"""Which of the known names somebody has meant who wrote another one."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Below this likeness a suggestion puzzles more than it helps.
_LIKE = 0.6
# Each name is compared by its letters: of more an answer would take longer than a second.
MOST = 50_000
"""So many names are looked through."""


def nearest(word: str, known: Collection[str]) -> str:
    """The known name that is most like a word, upper and lower case aside; "" when none is like it."""
    # A number that looks like another one is no more likely to be meant than any other.
    if word.isdecimal() or len(known) > MOST:
        return ""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=_LIKE)
    return by_lower[found[0]] if found else ""


def meant(word: str, known: Collection[str], otherwise: str = "") -> str:
    """The end of a message about a name that is not known.

    Args:
        word: What was written.
        known: What could have been.
        otherwise: What to do where no known name is like it.

    Returns:
        `; did you mean 'x'?`, or `; ` and the other words, or "" without any.
    """
    name = nearest(word, known)
    if name:
        return f"; did you mean {name!r}?"
    return f"; {otherwise}" if otherwise else ""
