"""A small world with a known answer: people of four tastes, films of four genres, everybody stays with one taste."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

TASTES = ("Action", "Comedy", "Drama", "War")
USERS, ITEMS, PER_USER = 160, 80, 14
START = 1_600_000_000
FEW_FEATURES = {
    "query": [{"encoding": "history", "max_length": 12}, {"encoding": "history_age"}],
    "candidate": [
        {"column": "item_id", "encoding": "vocabulary", "dimension": 8},
        {"column": "genres", "encoding": "vocabulary", "dimension": 8, "multivalued": True},
    ],
}
"""For tests that run Transform again and again: its time grows with the number of features, whatever the data."""


def interactions(seed: int = 0) -> list[dict[str, object]]:
    """Rows in the order of time. User u has taste u % 4, item i genre i % 4; nine in ten choices are of one's taste."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        own = [i for i in range(ITEMS) if i % 4 == user % 4]
        rest = [i for i in range(ITEMS) if i % 4 != user % 4]
        popularity = 1 / np.arange(1, len(own) + 1) ** 0.5
        chosen = list(rng.choice(own, PER_USER, replace=False, p=popularity / popularity.sum()))
        for position in np.flatnonzero(rng.random(PER_USER) < 0.1):
            chosen[position] = int(rng.choice([i for i in rest if i not in chosen]))
        times = np.sort(rng.integers(0, 86400 * 300, PER_USER)) + START
        rows += [
            {"user_id": user + 1, "item_id": int(item) + 1, "rating": 1.0 + user % 5, "timestamp": int(time)}
            for item, time in zip(chosen, times, strict=True)
        ]
    return sorted(rows, key=lambda row: row["timestamp"])


def items() -> list[dict[str, object]]:
    return [
        {"item_id": i + 1, "title": f"{TASTES[i % 4]} film {i + 1}", "genres": [TASTES[i % 4]], "price": 1.5 * i}
        for i in range(ITEMS)
    ]


def users() -> list[dict[str, object]]:
    return [
        {"user_id": u + 1, "age": 16 + u % 50, "gender": "FM"[u % 2], "occupation": ["cook", "poet"][u % 3 == 0]}
        for u in range(USERS)
    ]


def write_parquet(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("interactions", interactions()), ("items", items()), ("users", users())):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def write_csv(folder: Path) -> None:
    """The same as CSV, the genres in one cell."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = [{**item, "genres": "|".join(item["genres"])} for item in items()]
    for name, rows in (("interactions", interactions()), ("items", flat), ("users", users())):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def config(folder: Path, suffix: str = "parquet", **changes: object) -> dict[str, object]:
    """A configuration for the tables in a folder, small enough to run in seconds; its output goes there too."""
    genres = {"separator": "|"} if suffix == "csv" else {"multivalued": True}
    tree: dict[str, object] = {
        "name": "small-world",
        "tables": {
            "interactions": {"path": str(folder / f"interactions.{suffix}")},
            "items": {"path": str(folder / f"items.{suffix}"), "title": "title"},
            "users": {"path": str(folder / f"users.{suffix}")},
        },
        "split": {"strategy": "leave_last_out"},
        "features": {
            "query": [
                {"column": "user_id", "encoding": "vocabulary", "dimension": 8},
                {"column": "age", "encoding": "bucketized", "boundaries": [25, 40], "dimension": 8},
                {"column": "gender", "encoding": "vocabulary", "dimension": 8},
                {"column": "timestamp", "encoding": "timestamp", "dimension": 8},
                {"encoding": "history", "max_length": 12},
                {"encoding": "history_age"},
            ],
            "candidate": [
                {"column": "item_id", "encoding": "vocabulary", "dimension": 8},
                {"column": "title", "encoding": "text", "dimension": 8},
                {"column": "genres", "encoding": "vocabulary", "dimension": 8, **genres},
                {"column": "price", "encoding": "normalized"},
            ],
        },
        "model": {"dimension": 16},
        "training": {"epochs": 6, "batch_size": 128, "learning_rate": 0.02, "refit": False},
        "serving": {"k": 20, "return_columns": ["title"], "filter_columns": ["genres"], "known_users": 100},
        "evaluation": {"k": [5, 20], "slices": [{"column": "gender"}, {"column": "activity", "boundaries": [5]}]},
        "output": {"root": str(folder / "runs"), "push": str(folder / "served")},
    }
    return tree | changes


def write_config(folder: Path, suffix: str = "parquet", **changes: object) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(folder, suffix, **changes)))
    return str(path)
