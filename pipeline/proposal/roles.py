"""Which column is the user, the item, the time: by name, by type and by what the tables have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modules.data.profiles import Profile, words
from modules.errors import UserError

_USER = {"user", "customer", "visitor", "member", "client", "account", "person", "profile", "viewer", "reader", "buyer",
         "shopper", "subscriber", "student", "patient", "listener", "player", "uid", "session"}  # fmt: skip
_ITEM = {"item", "product", "sku", "movie", "film", "book", "article", "track", "song", "artist", "album", "game",
         "asin", "isbn", "content", "video", "listing", "offer", "news", "course", "recipe", "restaurant", "business",
         "job", "post", "page", "anime", "show", "document", "doc", "good", "iid"}  # fmt: skip
_TIME = {"timestamp", "time", "date", "datetime", "ts", "at", "when", "day", "unix", "created", "moment"}
_WEIGHT = {"weight", "quantity", "qty", "count", "plays", "listens", "clicks", "views", "purchases"}
_TITLE = {"title", "name", "headline", "caption"}
_ID = {"id", "ids", "key", "no", "number", "code", "uuid", "guid", "hash", "idx", "index", "nr", "parent"}
# Names count twice as much as what columns have in common.
_NAME, _SAME_NAME = 2.0, 1.0
_CLEAR = 0.2
_PLACES_BELOW = 100_000_000
"""Whole numbers below are places in an order, or times within three years of 1970."""
LATEST = 4_102_444_799
_LEAST_OVERLAP = 0.01


@dataclass(frozen=True)
class Given:
    """Columns that the person has named; None where they have to be found."""

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    weight: str | None = None
    item_id: str | None = None
    title: str | None = None
    user_id: str | None = None


@dataclass
class Roles:
    """What was found."""

    user: str
    item: str
    timestamp: str
    weight: str | None
    item_id: str
    title: str | None
    user_id: str | None
    """None without a users table."""
    has_times: bool
    """Whether `timestamp` holds times, and not the mere order."""
    unsure: list[str] = field(default_factory=list)

    @property
    def of_interactions(self) -> set[str]:
        return {role for role in (self.user, self.item, self.timestamp, self.weight) if role is not None}


Profiles = Mapping[str, Profile]


def find(interactions: Profiles, items: Profiles, users: Profiles | None, given: Given) -> Roles:
    """Finds the roles.

    Args:
        interactions: Profiles of the columns of each table, by name.
        items: The same.
        users: The same; None without a users table.
        given: What need not be found.

    Raises:
        UserError: A column that is given is not there, or one cannot be told from another; says which option names it.
    """
    for option, column, table in (
        ("--user", given.user, interactions), ("--item", given.item, interactions),
        ("--timestamp", given.timestamp, interactions), ("--weight", given.weight, interactions),
        ("--item-id", given.item_id, items), ("--title", given.title, items), ("--user-id", given.user_id, users or {}),
    ):  # fmt: skip
        if column is not None and column not in table:
            raise UserError(f"{option} {column}: there is no such column; there are {_listed(table)}")
    for name, known in (("interactions", interactions), ("items", items), ("users", users)):
        if known is not None and not any(profile.rows for profile in known.values()):
            raise UserError(f"--{name}: the table has no rows, or no column that can be read")
    unsure: list[str] = []
    taken = {c for c in (given.user, given.item, given.timestamp, given.weight) if c is not None}
    timestamp = given.timestamp or _timestamp(interactions, taken)
    rest = {name: p for name, p in interactions.items() if name != timestamp}
    item, item_id = _pair(rest, items, _ITEM, _USER, taken, (given.item, given.item_id), "item", unsure)
    rest = {name: p for name, p in rest.items() if name != item}
    user_id = None
    if users is not None:
        user, user_id = _pair(rest, users, _USER, _ITEM, taken, (given.user, given.user_id), "user", unsure)
    else:
        user = given.user or _user(rest, {column for column in taken if column != given.user}, unsure)
    weight = given.weight or _weight(rest, {user}, unsure)
    title = given.title or _title(items, item_id)
    time = interactions[timestamp]
    has_times = time.is_date or time.most >= _PLACES_BELOW
    if not has_times:
        unsure.append(
            f"{timestamp!r} of interactions was taken for the order alone: its numbers are too small for times"
        )
    return Roles(user, item, timestamp, weight, item_id, title, user_id, has_times, unsure)


def _named(name: str, known: set[str]) -> float:
    """How well a name says that a column is the id of something: 1 when it says nothing else, 0 when not at all."""
    said = [word for word in words(name) if word not in _ID]
    joined = "".join(words(name))
    if said and all(word.rstrip("s") in known or word in known for word in said):
        return 1.0
    # userid, itemid
    if any(joined in (word, f"{word}id", f"{word}key") for word in known):
        return 1.0
    return 0.3 if any(word in known for word in said) else 0.0


def _pair(
    left: Profiles, right: Profiles, mine: set[str], others: set[str], taken: set[str],
    given: tuple[str | None, str | None], what: str, unsure: list[str],
) -> tuple[str, str]:  # fmt: skip
    """The column of the interactions and the id of the table that it points to.

    Args:
        left: Columns of the interactions.
        right: Columns of the other table.
        mine: Words for what is looked for.
        others: Words for the other side.
        taken: Columns that have another role, if they are not the one that is given.
        given: What need not be found.
        what: item or user.
        unsure: Is told what is not certain.
    """
    scores: dict[tuple[str, str], tuple[float, float]] = {}
    for name, column in left.items():
        if given[0] not in (None, name) or (given[0] is None and name in taken) or column.is_list:
            continue
        for id_, ids in right.items():
            if given[1] not in (None, id_) or (given[1] is None and not ids.is_unique):
                continue
            overlap = column.values.share_in(ids.values)
            if overlap < _LEAST_OVERLAP and given[1] is None:
                continue
            names = _named(name, mine) - _named(name, others) + max(_named(id_, mine), 0.8 * (words(id_) == ["id"]))
            scores[name, id_] = (_NAME * names + _SAME_NAME * (name == id_) + overlap, overlap)
    options = f"--{what} and --{what}-id"
    if not scores:
        raise UserError(
            f"--{what}s: no column of the interactions ({_listed(left)}) holds values of a column of the {what}s table "
            f"that is different in each row ({_listed({n: p for n, p in right.items() if p.is_unique})}); "
            f"do both tables have the same ids? Name the two columns with {options}"
        )
    ranked = sorted(scores, key=lambda pair: (-scores[pair][0], pair))
    best = ranked[0]
    if len(ranked) > 1 and scores[best][0] - scores[ranked[1]][0] < _CLEAR:
        close = [pair for pair in ranked if scores[best][0] - scores[pair][0] < _CLEAR]
        choices = ", ".join(f"{name!r} with {id_!r}" for name, id_ in close[:3])
        raise UserError(
            f"--{what}s: it is not clear which columns are the {what} and its id ({choices}); name both with {options}"
        )
    overlap = scores[best][1]
    if None in given and not _named(best[0], mine):
        unsure.append(f"{best[0]!r} of interactions was taken for the {what} because of its values: {overlap:.0%} of "
                      f"them are in {best[1]!r} of {what}s")  # fmt: skip
    elif overlap < 0.5:
        unsure.append(f"only {overlap:.0%} of the different {best[0]!r} of interactions are in {best[1]!r} of {what}s")
    return best


def _user(left: Profiles, taken: set[str], unsure: list[str]) -> str:
    """The user's column where no table of users helps."""
    scores = {name: _named(name, _USER) for name, p in left.items() if not p.is_list and name not in taken}
    best = max(scores.values(), default=0.0)
    named = [name for name, score in scores.items() if score == best and best > 0]
    if len(named) == 1:
        return named[0]
    could = named or [
        name for name in scores
        if 1 < left[name].different < left[name].rows and (not left[name].is_number or left[name].is_whole)
        and not left[name].is_date and not _named(name, _ITEM) and words(name)[-1:] != ["rating"]
    ]  # fmt: skip
    if len(could) != 1:
        raise UserError(
            f"--interactions: it is not clear which column is the user ({_listed(left)}); name it with --user"
        )
    unsure.append(f"{could[0]!r} of interactions was taken for the user: no other column could be one")
    return could[0]


def _timestamp(interactions: Profiles, taken: set[str]) -> str:
    scores: dict[str, float] = {}
    milliseconds = None
    for name, profile in interactions.items():
        if name in taken or profile.is_list or not profile.there:
            continue
        said = words(name)
        named = bool(set(said) & _TIME) or (said[-1:] == ["at"]) or "".join(said).endswith(("time", "timestamp"))
        if profile.is_date:
            scores[name] = 2.0 + named
        elif profile.is_number and profile.least >= 0 and named:
            if profile.most > LATEST:
                milliseconds = name
            else:
                scores[name] = 2.0 + (words(name)[-1:] == ["timestamp"])
        elif profile.is_number and profile.is_whole and profile.least >= 315_532_800 and profile.most <= LATEST:
            scores[name] = 1.0
    best = max(scores.values(), default=0.0)
    found = [name for name, score in scores.items() if score == best]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"--interactions: it is not clear which column is the time ({_listed(found)}); name it with --timestamp"
        )
    if milliseconds is not None:
        raise UserError(
            f"--interactions: {milliseconds!r} holds numbers up to {interactions[milliseconds].most:.0f}, which are no "
            "seconds since 1970; divide milliseconds by 1000, or name another column with --timestamp"
        )
    raise UserError(
        f"--interactions: no column is a time in seconds since 1970 or a date ({_listed(interactions)}); add one, or "
        "number the rows where only their order is known, and name it with --timestamp"
    )


def _weight(rest: Profiles, taken: set[str], unsure: list[str]) -> str | None:
    for name, profile in rest.items():
        fits = profile.is_number and not profile.missing and profile.least >= 0 and profile.most > profile.least
        if name not in taken and set(words(name)[-1:]) & _WEIGHT and fits:
            unsure.append(f"{name!r} of interactions was taken for the weight because of its name; leave it out where "
                          "every interaction counts the same")  # fmt: skip
            return name
    return None


def _title(items: Profiles, item_id: str) -> str | None:
    could = [
        name for name, profile in items.items()
        if set(words(name)[-1:]) & _TITLE and name != item_id and not profile.is_list and profile.there
        and not profile.is_number and not profile.is_date
    ]  # fmt: skip
    # `title` before `original_title`.
    return min(could, key=lambda name: (len(words(name)), "title" not in words(name)), default=None)


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name[:60]) for name in names]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "") or "none"
