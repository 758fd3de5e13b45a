"""What comes after the ranking: rules that no score may break."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence


def answer(
    ranking: Sequence[str],
    k: int,
    seen: Container[str] = (),
    in_stock: Container[str] | None = None,
    values: Mapping[str, Collection[str]] | None = None,
    most: int | None = None,
) -> list[str]:
    """The first k items of a ranking that the rules let pass, in its order.

    The walk is that of `serving.max_per_value`: an item is taken unless one of its values has its m items already.

    Args:
        ranking: Items, best first.
        k: Items in the answer, fewer where the ranking has no more.
        seen: Never shown: what has been interacted with since the retrieval, too.
        in_stock: What can be shown; None for everything.
        values: Item → its values; one without any is not limited.
        most: Items of each value at most; None for any number.
    """
    taken: list[str] = []
    full: Counter[str] = Counter()
    for item in ranking:
        own = (values or {}).get(item, ())
        if item in seen or (in_stock is not None and item not in in_stock):
            continue
        if most is not None and any(full[value] >= most for value in own):
            continue
        taken.append(item)
        full.update(own)
        if len(taken) == k:
            break
    return taken
