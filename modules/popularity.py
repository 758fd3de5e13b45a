"""How often items are interacted with: in the long run, and lately in comparison."""

from __future__ import annotations

import numpy as np


def log_popularity(frequency: np.ndarray) -> np.ndarray:
    """[V + 1] float32: log((n + 1) / mean(n + 1)) for an item with n interactions.

    It is where item biases start: a softmax without anything else has its optimum at the logarithm of the shares. Row
    0, an item without interactions, is as rare as the rarest.

    Args:
        frequency: [V + 1] interactions by label; row 0 is unused.
    """
    popularity = np.log((frequency + 1.0) / np.mean(frequency[1:] + 1.0))
    popularity[0] = popularity[1:].min(initial=0.0)
    return popularity.astype(np.float32)


def recent_lift(frequency: np.ndarray, recent: np.ndarray, prior: float, is_candidate: np.ndarray) -> np.ndarray:
    """[V + 1] float32: log of an item's share of the recent interactions over its share of all of them.

    The recent share is smoothed towards the long-run one as by a Dirichlet prior, so that an item of which little is
    known has a lift near 0.

    Args:
        frequency: [V + 1] interactions by label.
        recent: [V + 1] those of them that are recent, the latest ones.
        prior: Weight of the long-run shares, as a share of the recent interactions.
        is_candidate: [V + 1] bool; other items have no lift.
    """
    share = frequency + 0.5
    share /= share.sum()
    total = recent.sum()
    weight = prior * total
    lately = (recent + weight * share) / (total + weight)
    return np.where(is_candidate, np.log(lately / share), 0.0).astype(np.float32)
