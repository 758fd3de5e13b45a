"""A recipe: what is known of users in a Feast feature store, and requests that are made from there.

    python -m serving.feast_users push VERSION_FOLDER --store FOLDER
    python -m serving.feast_users ask USER… --store FOLDER --address localhost:8501 --model movielens-100k

For who has a feature store that other services read and write. Without one, `recommend_user` needs none of this: the
servable looks users up itself. Runs where Feast is, with this folder and `pip install feast urllib3`; Feast's pins and
TFX's have no common solution. docs/integrations.md has the way.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.client import Inputs, RestClient, TensorSpec, missing, padded

if TYPE_CHECKING:
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView

USER, HISTORY, NEWEST, WRITTEN = "user_id", "history", "newest", "written"
"""Columns of the frame beside the features: those of `assets.extra/users.parquet`, and the time that Feast wants."""
VIEW, PUSH_SOURCE = "twotower_users", "twotower_users_push"


@dataclass(frozen=True)
class Columns:
    """What a model calls the inputs that no table of users has."""

    user: str
    timestamp: str
    history: str = ""
    history_age: str = ""
    """Both "" where the model reads none."""


def known_users(version: str) -> tuple[pd.DataFrame, Columns]:
    """What a pushed version knows of users: a row each, histories as item ids.

    Args:
        version: The folder of a version that was made with `serving.known_users`.

    Raises:
        FileNotFoundError: It knows none.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    extra = os.path.join(version, "assets.extra")
    with open(os.path.join(extra, "servable.json"), encoding="utf-8") as file:
        servable = json.load(file)
    users = pq.read_table(os.path.join(extra, "users.parquet"))
    items = pq.read_table(os.path.join(extra, "catalogue.parquet"), columns=["item_id"])["item_id"].to_numpy()
    named = json.loads(users.schema.metadata[b"twotower.columns"])
    ages = [f["column"] for f in servable["embedding"]["features"]["query"] if f["encoding"] == "history_age"]
    features = users["features"].to_pylist() if "features" in users.column_names else [{}] * users.num_rows
    frame = pd.DataFrame(features)
    frame[USER] = users["user_id"].to_pylist()
    # Rows of the catalogue are those of this version alone.
    frame[HISTORY] = [[str(item) for item in items[rows]] for rows in users["history"].to_numpy()]
    frame[NEWEST] = users["newest"].to_pandas().astype("Int64").fillna(-1).astype(np.int64)
    frame[WRITTEN] = pd.Timestamp.now("UTC")
    columns = Columns(named["user"], named["timestamp"], servable["history_column"] or "", *ages)
    return frame, columns


def request(
    inputs: Mapping[str, TensorSpec], columns: Columns, users: Sequence[str], known: Mapping[str, Sequence[Any]],
    asked: int,
) -> Inputs:  # fmt: skip
    """The request for `serving_default`, from what a feature store answered.

    Args:
        inputs: Of the signature, as `Client.metadata` has them.
        columns: What the model calls them.
        users: Ids, B of them.
        known: By column a value for each user, None where the store has none.
        asked: Now, in seconds since 1970.
    """
    made: dict[str, Any] = {}
    for name, spec in inputs.items():
        nothing = missing(spec, len(users))
        values = known.get(name)
        if spec.shape is not None and len(spec.shape) == 2:
            made[name] = padded([value or () for value in values]) if values else nothing
        elif values is not None:
            made[name] = np.array([n if v is None else v for v, n in zip(values, nothing, strict=True)], spec.dtype)
        else:
            made[name] = nothing
    if columns.user in inputs:
        made[columns.user] = np.array(users, object)
    if columns.timestamp in inputs:
        made[columns.timestamp] = np.full(len(users), asked, np.int64)
    if columns.history_age in inputs:
        newest = known.get(NEWEST) or [None] * len(users)
        ages = [math.nan if time is None or time < 0 else max(0, asked - time) for time in newest]
        made[columns.history_age] = np.array(ages, np.float32)
    return made


def view(frame: pd.DataFrame, columns: Columns, file: str) -> tuple[Entity, FeatureView]:
    """Feast's description of the frame; what the model calls its inputs goes along as tags.

    Args:
        frame: What `known_users` gives.
        columns: The same.
        file: A Parquet file of the frame, from which Feast's offline store reads.
    """
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Float32, Int64, String

    def kind(values: pd.Series) -> Any:
        first = next((value for value in values if value is not None), "")
        if isinstance(first, (list, np.ndarray)):
            return Array(String)
        return {"f": Float32, "i": Int64}.get(values.dtype.kind, String)

    user = Entity(name="user", join_keys=[USER], value_type=ValueType.STRING)
    return user, FeatureView(
        name=VIEW,
        entities=[user],
        schema=[Field(name=name, dtype=kind(frame[name])) for name in frame if name != WRITTEN],
        source=PushSource(name=PUSH_SOURCE, batch_source=FileSource(path=file, timestamp_field=WRITTEN)),
        tags=dataclasses.asdict(columns),
    )


def open_store(folder: str) -> FeatureStore:
    """A store in a folder: files, and SQLite for reading online. Yours is `FeatureStore(repo_path=…)`."""
    from feast import FeatureStore, RepoConfig

    return FeatureStore(
        config=RepoConfig(
            project="twotower",
            provider="local",
            registry=os.path.join(folder, "registry.db"),
            online_store={"type": "sqlite", "path": os.path.join(folder, "online.db")},
            entity_key_serialization_version=3,
        )
    )


def push(version: str, folder: str) -> int:
    """Writes what a version knows of users to the store.

    Returns:
        The number of users.
    """
    frame, columns = known_users(version)
    os.makedirs(folder, exist_ok=True)
    file = os.path.join(os.path.abspath(folder), "users.parquet")
    frame.to_parquet(file)
    store = open_store(folder)
    store.apply([*view(frame, columns, file)])
    # Whoever sees what a user does, pushes that user's row in the same way: a frame with these columns.
    store.push(PUSH_SOURCE, frame)
    return len(frame)


def ask(users: Sequence[str], folder: str, address: str, model: str) -> list[list[str]]:
    """The items for some users, best first: read online, then asked of the server's REST interface."""
    store = open_store(folder)
    described = store.get_feature_view(VIEW)
    features = [f"{VIEW}:{field.name}" for field in described.features]
    known = store.get_online_features(features=features, entity_rows=[{USER: user} for user in users]).to_dict()
    with RestClient(address, model) as client:
        inputs = client.metadata().signatures["serving_default"].inputs
        asked = request(inputs, Columns(**described.tags), users, known, int(time.time()))
        return [[item for item in row if item] for row in client.predict(asked)["item_id"].tolist()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    pushing, asking = commands.add_parser("push"), commands.add_parser("ask")
    pushing.add_argument("version")
    asking.add_argument("users", nargs="+")
    asking.add_argument("--address", default="localhost:8501")
    asking.add_argument("--model", required=True)
    for each in (pushing, asking):
        each.add_argument("--store", required=True)
    given = parser.parse_args()
    if given.command == "push":
        print(f"{push(given.version, given.store)} users")
        return
    for user, items in zip(given.users, ask(given.users, given.store, given.address, given.model), strict=True):
        print(user, *items[:10])


if __name__ == "__main__":
    main()
