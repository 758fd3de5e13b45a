"""How a column is encoded, by what it holds: one rule after the other, the first that fits, each with its reason."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules.data.profiles import Profile, words

# From these on a column says nothing of most rows, or a value hardly anything of others.
_MOSTLY_EMPTY, _OWN_VALUE = 0.95, 0.5
_FEW, _MANY = 10, 100_000
_BUCKETS = 10
# A mean that is so many medians: amounts, most of them small.
_SKEWED = 2.0
_WORDS_OF_TEXT = 3
_CODES = {"id", "code", "zip", "zipcode", "postcode", "postal", "type", "category", "class", "group", "segment",
          "gender", "sex", "status", "level", "store", "shop", "brand", "department", "section", "cluster"}  # fmt: skip
# What can be known of a request before anybody has chosen.
_CONTEXT = {"device", "platform", "channel", "country", "city", "region", "os", "browser", "app", "store", "shop",
            "locale", "language", "market", "site", "domain", "placement", "source", "weather"}  # fmt: skip
_SEPARATORS = "|;,"
# Of whole numbers that are taken for times: the years 2000 to 2035.
_EARLIEST, _LATEST = 946_684_800, 2_082_758_399


@dataclass(frozen=True)
class Choice:
    """What becomes of a column."""

    column: str
    reason: str
    fields: dict[str, Any] | None
    """Of the feature in the YAML; None for a column that is left out."""
    unsure: str | None = None
    values: int = 0
    """Different categories, of a feature that has some."""

    def left_out(self, reason: str) -> Choice:
        return Choice(self.column, reason, None)


def choose(profile: Profile, is_title: bool = False) -> Choice:
    """The encoding of a column of users or items."""
    empty = f", {profile.empty_share:.1%} empty" if profile.missing else ""
    number = profile.in_words

    def encoded(encoding: str, reason: str, unsure: str | None = None, values: int = 0, **fields: Any) -> Choice:
        said = {"column": profile.name, "encoding": encoding, **fields}
        return Choice(profile.name, reason + empty, said, unsure, values or profile.values.number)

    def left_out(reason: str) -> Choice:
        return Choice(profile.name, reason, None)

    if not profile.there:
        return left_out("every cell is empty")
    if profile.values.number <= 1 and profile.cells.number <= 1:
        return left_out("one value only, which says nothing")
    if profile.empty_share > _MOSTLY_EMPTY:
        return left_out(f"{profile.empty_share:.0%} of the cells are empty")
    if profile.is_list:
        return _of_list(profile, encoded, {"multivalued": True})
    if profile.is_date:
        return encoded("timestamp", "dates")
    if profile.is_number:
        return _of_number(profile, encoded)
    separator = _separator(profile)
    if separator is not None:
        parts = [[p.strip() for p in cell.split(separator) if p.strip()] for cell in profile.sample]
        different = len({part for cell in parts for part in cell})
        reason = f"lists of categories in one cell, about {different:,} different"
        return encoded("vocabulary", reason, values=different, separator=separator, **_most(max(map(len, parts))))
    length = np.mean([len(cell.split()) for cell in profile.sample])
    if any(re.match(r"https?://|/|data:", cell) for cell in profile.sample[:20]):
        return left_out("addresses of pages or files")
    if sum(cell.lstrip()[:1] in ("[", "{") for cell in profile.sample) > len(profile.sample) / 2:
        return left_out("lists or objects written as text; write the values with a separator such as | between them")
    own = profile.different > _OWN_VALUE * profile.there and profile.there >= 20
    if is_title or length >= _WORDS_OF_TEXT or (own and length >= 2):
        longest = int(np.percentile([len(re.findall(r"\w+", cell)) for cell in profile.sample], 99))
        fields: dict[str, Any] = {} if longest > 28 else {"max_tokens": max(4, -(-longest // 4) * 4)}
        return encoded("text", f"text, {length:.1f} words on average", **fields)
    if own:
        return left_out(f"nearly every row has a value of its own ({number} of {profile.there:,})")
    return _of_category(profile, encoded, f"{number} categories")


def choose_context(profile: Profile) -> Choice:
    """The encoding of a column of the interactions: only what is known when a request is made may be read."""
    choice = choose(profile)
    if choice.fields is None:
        return choice
    if profile.holds_separator:
        return choice.left_out("holds the character U+001F, which separates the values of a list")
    if set(words(profile.name)) & _CONTEXT and choice.fields["encoding"] in ("vocabulary", "hash"):
        unsure = f"{profile.name!r} of interactions is read as known when a request is made; leave it out if it is not"
        return dataclasses.replace(choice, reason=f"{choice.reason}; of the request, by its name", unsure=unsure)
    return choice.left_out("belongs to the interaction, and may be known only after it; a request would not have it")


def _of_number(profile: Profile, encoded: Any) -> Choice:
    different, number, said = profile.different, profile.in_words, set(words(profile.name))
    if profile.is_whole and (said & _CODES or different <= _FEW):
        own = different > _OWN_VALUE * profile.there and profile.there >= 20
        if own:
            return Choice(profile.name, f"codes, nearly one for each row ({number} of {profile.there:,})", None)
        unsure = None if different <= _FEW else f"{profile.name!r} of {profile.table} is read as codes, not as a number"
        return _of_category(profile, encoded, f"{number} whole numbers that name something", unsure)
    if profile.is_whole and profile.least >= _EARLIEST and profile.most <= _LATEST:
        unsure = f"{profile.name!r} of {profile.table} is read as seconds since 1970, by the size of its numbers"
        return encoded("timestamp", "numbers of the size of seconds since 1970", unsure)
    if different < _BUCKETS:
        return _of_category(profile, encoded, f"{number} different numbers")
    numbers = profile.numbers()
    middle = float(np.median(numbers))
    span = f"numbers from {profile.least:g} to {profile.most:g}"
    if profile.least >= 0 and float(numbers.mean()) > _SKEWED * max(middle, 1e-9):
        return encoded("log1p", f"{span}, most of them small")
    if "id" in said or "index" in said:
        return Choice(profile.name, "numbers that name something, and more than can be told apart", None)
    return encoded("bucketized", f"{span}, {number} different: an embedding for each tenth", buckets=_BUCKETS)


def _of_list(profile: Profile, encoded: Any, fields: dict[str, Any]) -> Choice:
    reason = f"lists of categories, {profile.values.number:,} different, {profile.longest} in the longest"
    if profile.values.number > _MANY:
        return encoded("hash", reason, buckets=_MANY, **fields, **_most(profile.longest))
    return encoded("vocabulary", reason, **fields, **_most(profile.longest))


def _of_category(profile: Profile, encoded: Any, reason: str, unsure: str | None = None) -> Choice:
    if profile.different > _MANY:
        return encoded("hash", f"{reason}, too many for a row each", unsure, buckets=_MANY)
    return encoded("vocabulary", reason, unsure)


def _most(longest: int) -> dict[str, Any]:
    """The limit of a list's values, where the usual one is not the right one."""
    return {} if longest == 16 else {"max_values": min(longest, 32)}


def _separator(profile: Profile) -> str | None:
    """What separates the values of a list that is kept in one cell; None for other texts."""
    for separator in _SEPARATORS:
        lists = [list(_parts(cell, separator)) for cell in profile.sample]
        several = sum(len(parts) > 1 for parts in lists)
        everything = [part for parts in lists for part in parts]
        if several < 0.2 * len(lists) or not everything:
            continue
        different = set(everything)
        short = np.mean([len(part.split()) for part in different]) <= _WORDS_OF_TEXT
        if short and len(different) <= len(everything) / 2 and len(different) <= len(set(profile.sample)):
            return separator
    return None


def _parts(cell: str, separator: str) -> Iterator[str]:
    yield from (part.strip() for part in cell.split(separator) if part.strip())
