"""Item-to-item weights in closed form, as two factors that fit into a query and a candidate vector.

B minimises α‖X − XB‖² + ‖T − SB‖² + λ‖B‖² with a zero diagonal: which items go together (X, whole histories: EASE,
Steck, WWW 2019) and which come next (S before and T after a place in a history, nearer items counting more: SLIST, Choi
et al., WWW 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse

# Weight of α: what goes together counts this many times as much as what comes next.
_TOGETHER = 2.0
# How far before and behind a place of a history the transitions look.
_BEFORE = 50
_AFTER = 10
# Users that the moments are taken over, at most; the matrices of more would say the same.
_USERS = 50_000
_USERS_AT_ONCE = 2_000


@dataclass(frozen=True)
class Moments:
    """What the weights are solved from; all [V, V] float64 over the items 1 … V."""

    gram: np.ndarray
    """α XᵀX + SᵀS."""
    cross: np.ndarray
    """α XᵀX + SᵀT."""
    together: np.ndarray
    """XᵀX."""
    users: int


@dataclass(frozen=True)
class Factors:
    """A query is the sum of its history's rows of `history`, a candidate its row of `items`: [V + 1, R] float32.

    Row 0 is zero. Over the users' whole histories the scores of the items have a standard deviation of 1.
    """

    history: np.ndarray
    items: np.ndarray


def moments(owned: np.ndarray, items: int, decay: float, seed: int) -> Moments:
    """Co-occurrences and transitions.

    Args:
        owned: [U, N] items of each user, newest first, each once, padded with 0; numbers above `items` are left out.
        items: V.
        decay: In transitions the n-th item before or behind a place weighs n ** −decay.
        seed: Of the draw of users, where there are more than are needed.
    """
    if len(owned) > _USERS:
        owned = owned[np.sort(np.random.default_rng(seed).choice(len(owned), _USERS, replace=False))]
    together, before, after = np.zeros((3, items, items))
    for start in range(0, len(owned), _USERS_AT_ONCE):
        # Oldest first, without gaps: left-out items take no place.
        part = owned[start : start + _USERS_AT_ONCE, ::-1]
        present = (part > 0) & (part <= items)
        user, order = np.nonzero(present)
        item = part[user, order] - 1
        whole = scipy.sparse.csr_matrix((np.ones(len(item)), (user, item)), (len(part), items))
        together += (whole.T @ whole).toarray()
        s = _neighbours(user, item, items, [-n for n in range(1, _BEFORE + 1)], decay)
        t = _neighbours(user, item, items, list(range(_AFTER)), decay)
        # The first item of a history has nothing before it.
        first = np.append(True, user[1:] != user[:-1])
        t = scipy.sparse.diags((~first).astype(float)) @ t
        before += (s.T @ s).toarray()
        after += (s.T @ t).toarray()
    return Moments(_TOGETHER * together + before, _TOGETHER * together + after, together, len(owned))


def _neighbours(
    user: np.ndarray, item: np.ndarray, items: int, offsets: list[int], decay: float
) -> scipy.sparse.csr_matrix:
    """[places, V]: the items at some offsets from each place of the same history, weighted by their distance."""
    places = np.arange(len(item))
    rows, columns, weights = [], [], []
    for distance, offset in enumerate(offsets):
        there = places + offset
        inside = (there >= 0) & (there < len(item))
        inside[inside] = user[there[inside]] == user[inside]
        rows.append(places[inside])
        columns.append(item[there[inside]])
        weights.append(np.full(np.count_nonzero(inside), (1.0 + distance) ** -decay))
    values = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return scipy.sparse.csr_matrix(values, (len(item), items))


def solve(moments: Moments, ridge: float) -> np.ndarray:
    """[V, V] weights B: column j scores item j, and no item scores itself.

    Args:
        moments: Of the users.
        ridge: λ.
    """
    inverse = np.linalg.inv(moments.gram + ridge * np.eye(len(moments.gram)))
    weights = inverse @ moments.cross
    return weights - inverse * (np.diag(weights) / np.diag(inverse))


def factors(moments: Moments, weights: np.ndarray, rank: int) -> Factors:
    """The two factors of the rank-R weights that come closest to B in the scores of the users' histories.

    B V Vᵀ, with the R first eigenvectors V of Bᵀ (α XᵀX + SᵀS) B.
    """
    size = len(weights)
    first = max(0, size - rank)
    _, vectors = scipy.linalg.eigh(weights.T @ moments.gram @ weights, subset_by_index=[first, size - 1])
    kept = vectors[:, ::-1]
    history = weights @ kept
    # Var(XBV·Vᵀ) over users and items, from XᵀX alone; the mean over items of a user's scores is next to nothing.
    variance = np.trace(history.T @ moments.together @ history) / max(moments.users * size, 1)
    history /= max(np.sqrt(variance), 1e-12)
    pad = np.zeros((1, kept.shape[1]))
    return Factors(np.append(pad, history, 0).astype(np.float32), np.append(pad, kept, 0).astype(np.float32))
