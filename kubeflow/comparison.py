"""Compares what two models recommend: the Parquet files that `twotower batch` wrote with each of them.

The same pipeline with the same seed makes the same model, in one process or in one for each stage: everybody gets the
same items in the same order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

# Scores are printed and compared as float32; a batch of another width may add in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Comparison:
    """How far two sets of recommendations agree."""

    users: int
    same: int
    """Users with the same items in the same order."""
    overlap: float
    """Share of a user's items that both lists have, averaged over the users."""
    largest_difference: float
    """Between the scores at the same place; NaN when the lists differ in length."""

    @property
    def agree(self) -> bool:
        """Whether every user has the same items in the same order, and the scores differ by rounding only."""
        return self.same == self.users and self.largest_difference <= _ROUNDING

    def __str__(self) -> str:
        return (
            f"{self.overlap:.2%} of the items are the same, in one order for {self.same:,} of {self.users:,} users; "
            f"scores at a place differ by at most {self.largest_difference:.2g}"
        )


def compare(one: str, other: str) -> Comparison:
    """Reads both files and compares them user by user."""
    columns = ["user_id", "item_id", "score"]
    first, second = (
        pq.read_table(path, columns=columns).to_pandas().sort_values("user_id", kind="stable") for path in (one, other)
    )
    lists = [table.groupby("user_id", sort=True)["item_id"].agg(tuple) for table in (first, second)]
    users = lists[0].index.union(lists[1].index)
    pairs = [(lists[0].get(user, ()), lists[1].get(user, ())) for user in users]
    same = sum(a == b for a, b in pairs)
    overlap = float(np.mean([len(set(a) & set(b)) / max(len(a), len(b)) for a, b in pairs]))
    difference = float("nan")
    if len(first) == len(second):
        difference = float(np.max(np.abs(first["score"].to_numpy() - second["score"].to_numpy()), initial=0.0))
    return Comparison(len(users), same, overlap, difference)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison. Exit code 0: the models agree."""
    parser = argparse.ArgumentParser(prog="kubeflow.comparison", description=__doc__)
    parser.add_argument("one")
    parser.add_argument("other")
    options = parser.parse_args(arguments)
    comparison = compare(options.one, options.other)
    print(comparison)
    return 0 if comparison.agree else 1


if __name__ == "__main__":
    sys.exit(main())
