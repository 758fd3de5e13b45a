"""Why an item is recommended: the answer of the signature `explain` in a program's terms and in a person's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Part:
    """A part of a score."""

    name: str
    """A query feature's column, or one of the words of docs/serving.md."""
    score: float
    exact: bool
    """Whether it is one of those that add up to the score; else it is what the score loses without the feature."""


@dataclass(frozen=True)
class Reason:
    """An item of the history, and what it adds to a score."""

    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """What one score is made of."""

    parts: tuple[Part, ...]
    """The largest first."""
    reasons: tuple[Reason, ...]
    """Items of the history, the largest first."""
    reasons_exact: bool
    """Whether what they add are parts of the score; else it is what the score loses without each of them."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[tuple[str, str, str]]:
        """(Item, text, score) for a person: what the score adds up to, then what speaks for the item."""
        total = " ".join(f"{'−' if p.score < 0 else '+'} {p.name} {abs(p.score):.3f}" for p in self.parts if p.exact)
        lines = [("", f"= {total.removeprefix('+ ')}", "")]
        lines += [("", f"  without {p.name}", f"{-p.score:+.3f}") for p in self.parts if not p.exact]
        because = "because of" if self.reasons_exact else "without"
        for reason in self.reasons:
            if reason.score > 0:
                score = reason.score if self.reasons_exact else -reason.score
                lines.append((reason.item_id, f"  {because} {reason.title}".rstrip(), f"{score:+.3f}"))
        return lines


def explanations(outputs: Mapping[str, Any], title: str | None) -> list[list[Explanation]]:
    """For each request and item of an answer of `explain`; parts that score nothing are left out.

    Args:
        outputs: Of the signature, as tensors.
        title: The column with the titles, where there is one.
    """
    arrays = {name: value.numpy() for name, value in outputs.items()}
    ids, scores = arrays["reason_item_id"], arrays["reason_score"]
    titles = arrays.get(f"reason_{title}", np.full_like(ids, b""))
    requests, items = ids.shape[:2]
    return [
        [
            Explanation(
                _parts(arrays["part"][row], arrays["part_score"][row, place], arrays["part_exact"][row]),
                _reasons(ids[row, place], titles[row, place], scores[row, place]),
                bool(arrays["reason_exact"][row]),
            )
            for place in range(items)
        ]
        for row in range(requests)
    ]


def _parts(names: np.ndarray, scores: np.ndarray, exact: np.ndarray) -> tuple[Part, ...]:
    parts = [Part(n.decode(), float(s), bool(e)) for n, s, e in zip(names, scores, exact, strict=True) if s]
    return tuple(sorted(parts, key=lambda part: -abs(part.score)))


def _reasons(ids: np.ndarray, titles: np.ndarray, scores: np.ndarray) -> tuple[Reason, ...]:
    rows = zip(ids, titles, scores, strict=True)
    return tuple(Reason(item.decode("utf-8", "replace"), t.decode(), float(s)) for item, t, s in rows if item)
