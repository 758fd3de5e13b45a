"""The item-item model: two factors that fit into a query and a candidate vector.

They are those of weights in closed form, whose matrices grow with the square of the number of items (`solve`), or of a
truncated singular value decomposition of the interactions, which covers any number of them (`spectral_factors`).

B minimises α‖X − XB‖² + ‖T − SB‖² + λ‖B‖² with a zero diagonal: which items go together (X, whole histories: EASE,
Steck, WWW 2019) and which come next (S before and T after a place in a history, nearer items counting more: SLIST, Choi
et al., WWW 2021). Where items come again it is SLIT, of the same paper: α is 0 and the diagonal is free, since an item
is in every history that it is in, and what comes next may be itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

# α: what goes together counts this many times as much as what comes next. MovieLens-100K, validation NDCG@10 of this
# model alone with ½, 1, 2, 4, 8: leave-last-out .1374 .1379 .1356 .1329 .1315, random .1999 .2043 .2072 .2058 .1992.
_TOGETHER = 2.0
# How far before and behind a place of a history the transitions look. Before, 10, 50 and 100 are within chance of each
# other there; behind, 1, 5, 10, 20: leave-last-out .1301 .1348 .1356 .1361, random .2083 .2072 .2072 .2066.
_BEFORE = 50
_AFTER = 10
_USERS_AT_ONCE = 2_000
# Of the randomised decompositions, and the eigenvectors that are taken beyond what is asked for. At 5,000 items and 256
# dimensions 2, 3, 4, 5, 6 iterations leave .06, .02, .01, .005, .002 % of what the best eigenvectors explain.
_ITERATIONS, _BEYOND = 5, 10
# By which powers of their numbers of interactions users and items count less. Validation recall@100 of this model alone
# on a million generated interactions: with ¼ for users and ¼, 0.3, 0.4, 0.5 for items .243 .246 .251 .248, ½ for both
# .156.
_USER_POWER, _ITEM_POWER = 0.25, 0.4


@dataclass(frozen=True)
class Moments:
    """What the weights are solved from, over the items 1 … V."""

    gram: np.ndarray
    """[V, V] float64: α XᵀX + SᵀS, which is inverted."""
    cross: np.ndarray
    """[V, V] float32: α XᵀX + SᵀT."""
    histories: scipy.sparse.csr_matrix
    """X [U, V]: 1 where a user has an item; how often where it comes again."""
    repeats: bool = False
    """Whether an item can come again, so that it may score itself."""

    def of_most_frequent(self, items: int) -> Moments:
        """The same over the first so many items."""
        gram, cross = self.gram[:items, :items], self.cross[:items, :items]
        return Moments(gram, cross, self.histories[:, :items], self.repeats)


@dataclass(frozen=True)
class Factors:
    """A query is the sum of its history's rows of `history`, a candidate its row of `items`: [V + 1, R] float32.

    Row 0 is zero. Over the users' whole histories the scores of the items have a standard deviation of 1.
    """

    history: np.ndarray
    items: np.ndarray

    @property
    def rank(self) -> int:
        """R."""
        return self.items.shape[1]

    def covering(self, item_rows: int, candidate_rows: int) -> Factors:
        """The same with rows of zeros for the ids that the model does not cover.

        Args:
            item_rows: Rows of `history` then, out-of-vocabulary buckets included.
            candidate_rows: Rows of `items` then.
        """
        return Factors(_with_rows(self.history, item_rows), _with_rows(self.items, candidate_rows))


def moments(offsets: np.ndarray, item: np.ndarray, items: int, decay: float, repeats: bool = False) -> Moments:
    """Co-occurrences and transitions.

    Args:
        offsets: [U + 1] where each user's sequence begins and the last one ends.
        item: [T] item ids, oldest first; ids above `items` are left out.
        items: V.
        decay: In transitions the n-th item before or behind a place weighs n ** −decay.
        repeats: Whether what comes again is a transition as well; else a user has each item once.
    """
    users = len(offsets) - 1
    gram, cross = np.zeros((items, items)), np.zeros((items, items), np.float32)
    histories = [scipy.sparse.csr_matrix((0, items), dtype=np.float32)]
    for start in range(0, users, _USERS_AT_ONCE):
        part = offsets[start : start + _USERS_AT_ONCE + 1]
        ids = item[part[0] : part[-1]].astype(np.int64)
        user = np.repeat(np.arange(len(part) - 1), np.diff(part))
        # Left-out items take no place.
        covered = (ids > 0) & (ids <= items)
        ids, user = ids[covered] - 1, user[covered]
        whole = scipy.sparse.csr_matrix((np.ones(len(ids), np.float32), (user, ids)), (len(part) - 1, items))
        together = (0.0 if repeats else _TOGETHER) * (whole.T @ whole)
        s = _neighbours(user, ids, items, [-n for n in range(1, _BEFORE + 1)], decay)
        t = _neighbours(user, ids, items, list(range(_AFTER)), decay)
        # The first item of a history has nothing before it.
        first = np.append(True, user[1:] != user[:-1])[: len(user)]
        t = scipy.sparse.diags((~first).astype(float)) @ t
        gram += (together + s.T @ s).toarray()
        cross += (together + s.T @ t).toarray()
        histories.append(whole)
    return Moments(gram, cross, scipy.sparse.vstack(histories, format="csr"), repeats)


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
    """[V, V] float32 weights B: column j scores item j, and no item scores itself unless items come again.

    With P = (gram + λI)⁻¹: B = P · cross − P · diag(diag(P · cross) / diag(P)), as in EASE (Steck 2019, equation 8),
    whose Lagrange multipliers keep the diagonal at zero.

    Args:
        moments: Of the users.
        ridge: λ.
    """
    ridged = moments.gram.copy()
    ridged[np.diag_indices_from(ridged)] += ridge
    # By Cholesky: the matrix is positive definite. In place where it can be: it may have gigabytes.
    inverse = scipy.linalg.inv(ridged, overwrite_a=True, assume_a="pos").astype(np.float32)
    weights = inverse @ moments.cross
    if moments.repeats:
        return weights
    inverse *= np.diag(weights) / np.diag(inverse)
    weights -= inverse
    return weights


def factors(moments: Moments, weights: np.ndarray, rank: int) -> Factors:
    """The two factors of the rank-R weights that come closest to B in the scores of the users' histories.

    Reduced-rank regression (Izenman, Journal of Multivariate Analysis 1975): B V Vᵀ, with the R first eigenvectors V of
    Bᵀ (α XᵀX + SᵀS) B. They are found by subspace iteration from a random start (Halko et al., SIAM Review 2011), whose
    time grows with the square of the number of items; where all but a few of these are asked for it is exact.

    Args:
        moments: Of the users.
        weights: B.
        rank: R.
    """
    size = len(weights)
    rank, gram = min(rank, size), moments.gram.astype(np.float32)

    def explained(vectors: np.ndarray) -> np.ndarray:
        """[V, n]: the matrix whose eigenvectors are looked for, times some vectors."""
        return weights.T @ (gram @ (weights @ vectors))

    start = np.random.default_rng(0).standard_normal((size, min(rank + _BEYOND, size))).astype(np.float32)
    space = np.linalg.qr(start)[0]
    for _ in range(_ITERATIONS):
        space = np.linalg.qr(explained(space))[0]
    _, within = np.linalg.eigh(space.T @ explained(space))
    kept = space @ within[:, ::-1][:, :rank]
    history = weights @ kept
    # Var(XBV·Vᵀ) over users and items: V is orthonormal.
    users = moments.histories.shape[0]
    return _scaled(history, kept, np.square(moments.histories @ history).sum() / max(users * size, 1))


def spectral_factors(offsets: np.ndarray, item: np.ndarray, items: int, rank: int) -> Factors:
    """The factors of PureSVD (Cremonesi et al., RecSys 2010) over scaled rows and columns.

    As in EigenRec (Nikolakopoulos et al., Knowledge and Information Systems 2019). With the R first right singular
    vectors V of D_u^−a X D_i^−b, where D holds the degrees of users and of items, a query is x D_i^−b V and a candidate
    is a row of D_i^b V. Time and memory grow with the interactions and with R times the items.

    Args:
        offsets: [U + 1] where each user's sequence begins and the last one ends.
        item: [T] item ids, of each user each item once; ids above `items` are left out.
        items: V.
        rank: R.
    """
    counts = np.diff(offsets)
    covered = (item > 0) & (item <= items)
    user = np.repeat(np.arange(len(counts)), counts)[covered]
    whole = scipy.sparse.csr_matrix(
        (np.ones(len(user), np.float32), (user, item[covered].astype(np.int64) - 1)), (len(counts), items)
    )
    of_users = np.maximum(whole.sum(axis=1), 1).A1 ** -_USER_POWER
    degrees = whole.sum(axis=0).A1
    scale = np.maximum(degrees, 1) ** -_ITEM_POWER
    scaled = scipy.sparse.diags(of_users) @ whole @ scipy.sparse.diags(scale)
    vectors = randomized_svd(scaled, min(rank, min(whole.shape)), n_iter=_ITERATIONS, random_state=0)[2].T
    # What nobody of these users interacted with has no direction but that of rounding.
    vectors[degrees == 0] = 0
    history, candidates = scale[:, np.newaxis] * vectors, vectors / scale[:, np.newaxis]
    summed = whole @ history
    squares = np.sum((summed.T @ summed) * (candidates.T @ candidates))
    return _scaled(history, candidates, squares / max(len(counts) * items, 1))


def query_factors(history: np.ndarray, recency: float, table: np.ndarray) -> np.ndarray:
    """[Q, R]: what the query tower's item-item part is for histories, outside of a graph.

    Args:
        history: [Q, H] item ids, newest first, padded with 0.
        recency: The p-th newest item (p from 0) weighs (1 + p) ** −recency.
        table: [rows, R], `Factors.history` for all ids.
    """
    present = history > 0
    row, place = np.nonzero(present)
    rank = (np.cumsum(present, axis=1) - 1)[row, place]
    weights = ((1.0 + rank) ** -recency, (row, history[row, place]))
    return scipy.sparse.csr_matrix(weights, (len(history), len(table))) @ table


def _scaled(history: np.ndarray, items: np.ndarray, variance: float) -> Factors:
    """Factors [V, R] whose scores have a variance of 1, and a row of zeros for the id 0.

    Args:
        history: Rows that are summed over a history.
        items: Rows of the candidates.
        variance: Of the scores over users and items; the mean over items of a user's scores is next to nothing.
    """
    history /= max(np.sqrt(variance), 1e-12)
    pad = np.zeros((1, items.shape[1]))
    return Factors(np.append(pad, history, 0).astype(np.float32), np.append(pad, items, 0).astype(np.float32))


def _with_rows(table: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([table, np.zeros((rows - len(table), table.shape[1]), np.float32)])
