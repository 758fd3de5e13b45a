"""Compares what two models recommend: the Parquet files that `twotower batch` wrote with each of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Comparison:
    """How far two sets of recommendations agree."""

    users: int
    same: int
    """Users with the same items in the same order."""
    largest_difference: float
    """Between the scores at the same place; NaN when the lists differ in length."""

    def __str__(self) -> str:
        return (
            f"{self.same:,} of {self.users:,} users get the same items in the same order; "
            f"scores differ by at most {self.largest_difference:.3g}"
        )


def compare(one: str, other: str) -> Comparison:
    """Reads both files and compares them user by user."""
    first, second = (pq.read_table(path, columns=["user_id", "item_id", "score"]).to_pandas() for path in (one, other))
    lists = [table.groupby("user_id", sort=True)["item_id"].agg(tuple) for table in (first, second)]
    users = lists[0].index.union(lists[1].index)
    same = sum(lists[0].get(user) == lists[1].get(user) for user in users)
    difference = float("nan")
    if len(first) == len(second):
        difference = float(np.max(np.abs(first["score"].to_numpy() - second["score"].to_numpy()), initial=0.0))
    return Comparison(len(users), same, difference)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison. Exit code 0: every user gets the same items in the same order."""
    parser = argparse.ArgumentParser(prog="kubeflow.comparison", description=__doc__)
    parser.add_argument("one")
    parser.add_argument("other")
    options = parser.parse_args(arguments)
    comparison = compare(options.one, options.other)
    print(comparison)
    return 0 if comparison.same == comparison.users else 1


if __name__ == "__main__":
    sys.exit(main())
