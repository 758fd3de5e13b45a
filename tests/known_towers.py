"""A small embedding model whose vectors are known to numpy, and a catalogue and queries that go with it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from modules.data.user_tables import UserTables
from modules.encodings.features import Columns, Features
from modules.retrieval.brute_force import BruteForce
from modules.retrieval.top_k import TopK
from modules.servable import embedding, signatures, warmup
from modules.servable.catalogue import EmbeddedCatalogue, by_popularity
from modules.servable.contract import SERVABLE_PATH, EmbeddingContract, ServableContract, read_embedding
from modules.servable.embedding import Embedding
from modules.servable.signatures import ServableModule
from modules.servable.user_snapshot import UserSnapshot, take
from modules.settings import Interactions, Items, Serving, Tables
from modules.towers.layout import Dimensions, VectorLayout

COLUMNS = Columns(user="user_id", item="item_id", timestamp="timestamp")
FEATURES = Features.model_validate(
    {
        "query": [{"encoding": "vocabulary", "column": "user_id"}, {"encoding": "history", "max_length": 3}],
        "candidate": [
            {"encoding": "vocabulary", "column": "item_id"},
            {"encoding": "vocabulary", "column": "genres", "multivalued": True},
        ],
    }
)
GENRES = ("Action", "Comedy", "Drama", "Très rare")
DIMENSION = 8
SERVING = Serving(k=20, return_columns=("title",), filter_columns=("genres",))
_ALL, _NONE = Dimensions(0, DIMENSION), Dimensions(DIMENSION, DIMENSION)
LAYOUT = VectorLayout(learned=_ALL, item_item=_NONE, lift=_NONE, discount=_NONE, similarity=_ALL)


class World:
    """Users, items and their vectors.

    A query is the user's vector, plus the mean vector of the three newest known items of the history. An unknown user
    has the vector 0.1. The more popular of two items has the smaller number, but for ties.
    """

    def __init__(self, items: int, users: int = 30, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        centres = generator.normal(size=(max(1, items // 15), DIMENSION))
        self.items = [f"i{number}" for number in range(items)]
        self.users = [f"u{number}" for number in range(users)]
        noise = generator.normal(0, 0.3, (items, DIMENSION))
        self.item_vectors = (centres[generator.integers(len(centres), size=items)] + noise).astype(np.float32)
        self.user_vectors = generator.normal(size=(users, DIMENSION)).astype(np.float32)
        self.popularity = (np.arange(items, 0, -1) // 2).astype(np.float32)
        self.titles = [f"Title {number}, é" for number in range(items)]
        # The last genre has one item in a hundred.
        self.genres = [[GENRES[n % 3]] + ([GENRES[3]] if n % 100 == 7 else []) for n in range(items)]
        self.histories = [
            list(generator.choice(self.items, size=min(items // 2, number % 12), replace=False))
            for number in range(users)
        ]

    def query(self, user: str, history: list[str]) -> np.ndarray:
        """[D]: what `query_embedding` answers."""
        vector = self.user_vectors[self.users.index(user)] if user in self.users else np.full(DIMENSION, 0.1)
        known = [self.item_vectors[self.items.index(i)] for i in history if i in self.items][-3:]
        return (vector + np.mean(known, axis=0) if known else vector).astype(np.float32)

    def catalogue(self) -> EmbeddedCatalogue:
        return EmbeddedCatalogue(
            self.items,
            self.item_vectors,
            self.popularity,
            {"title": self.titles, "genres": ["|".join(values) for values in self.genres]},
            {"genres": self.genres},
        ).only(by_popularity(pa.array(self.items), pa.array(self.popularity)))

    def query_example(self, user: int) -> bytes:
        values = {"user_id": [self.users[user]], "history": self.histories[user], "relevant_items": [self.items[0]]}
        return _example({name: [v.encode() for v in value] for name, value in values.items()})

    def item_example(self, item: int) -> bytes:
        values = {"item_id": [self.items[item]], "title": [self.titles[item]], "genres": self.genres[item]}
        return _example({name: [v.encode() for v in value] for name, value in values.items()})

    def interactions(self, folder: Path, histories: list[list[str]] | None = None, start: int = 0) -> Tables:
        """Writes a table in which each user interacts with the items of a history, a second each."""
        rows = [
            {"user_id": user, "item_id": item, "timestamp": start + 100 * number + second}
            for number, (user, history) in enumerate(zip(self.users, histories or self.histories, strict=True))
            for second, item in enumerate(history)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "interactions.parquet")
        return Tables(interactions=Interactions(path=str(folder / "interactions.parquet")), items=Items(path="none"))

    def snapshot(self, folder: Path, item_ids: Sequence[str], count: int = 1000) -> UserSnapshot:
        """What is known of users by their histories."""
        known = UserTables(self.interactions(folder), [])
        return take(known, [], item_ids, FEATURES, COLUMNS, count).users

    def save_embedding(self, path: Path) -> str:
        """Writes what the Trainer would; its tables read vocabularies from a folder that is gone afterwards."""
        assets = path.parent / f"{path.name}-assets"
        assets.mkdir(parents=True)
        model = _Towers(self, assets)
        signatures = {
            "query_embedding": model.query,
            "candidate_embedding": model.candidate,
            "explain_embedding": model.explain,
        }
        embedding.save(model, signatures, str(path), FEATURES, LAYOUT, {"item vectors/all": model.item_vectors})
        for file in assets.iterdir():
            file.unlink()
        assets.rmdir()
        return str(path)


def load_embedding(path: str) -> Embedding:
    return Embedding(tf.saved_model.load(path), read_embedding(path))


def contract(towers: EmbeddingContract, serving: Serving, size: int, **changes: object) -> ServableContract:
    """What a servable over these towers says of itself; by default one that searches exactly."""
    values = {
        "model": "films",
        "k": serving.k,
        "evaluation_k": 10,
        "layer": "stock",
        "strategy": "exact",
        "partitions_to_search": 1,
        "reorder": 1,
        "catalogue_size": size,
        "dimension": DIMENSION,
        "query_columns": ("user_id", "history"),
        "history_column": "history",
        "exclude_history": serving.exclude_history,
        "return_columns": serving.return_columns,
        "filter_columns": serving.filter_columns,
        "max_per_value": serving.max_per_value,
        "embedding": towers,
    }
    return ServableContract(**(values | changes))


def save_servable(
    world: World,
    towers: str,
    folder: Path,
    serving: Serving,
    index: TopK | None = None,
    catalogue: EmbeddedCatalogue | None = None,
    users: UserSnapshot | None = None,
    **claims: object,
) -> Path:
    """Writes a servable as ScannIndexBuilder does.

    Args:
        world: Whose queries and items warm it up.
        towers: What `save_embedding` wrote.
        folder: Where to.
        serving: What an answer holds.
        index: By default one that searches exactly.
        catalogue: By default everything that there is.
        users: Who is known; by default nobody.
        claims: What its contract says otherwise, be it true or not.
    """
    loaded, catalogue = load_embedding(towers), catalogue or world.catalogue()
    index = index or BruteForce(catalogue.vectors)
    queries = [world.query_example(user) for user in range(len(world.users))][-21:]
    items = [world.item_example(item) for item in range(min(30, len(world.items)))]
    requests = warmup.requests(catalogue, FEATURES, serving, COLUMNS.item, queries, items)
    if users is not None:
        requests = warmup.with_users(requests, users, FEATURES)
    with tempfile.TemporaryDirectory() as assets:
        built = ServableModule(loaded, catalogue, index, FEATURES, serving, 10, assets, users)
        signatures.save(built, str(folder), contract(loaded.contract, serving, len(catalogue.item_ids)), requests)
    written = json.loads((folder / SERVABLE_PATH).read_text())
    (folder / SERVABLE_PATH).write_text(json.dumps(written | claims))
    return folder


class _Towers(tf.Module):
    def __init__(self, world: World, assets: Path) -> None:
        super().__init__()
        self._users = _table(assets / "users.txt", world.users)
        self._items = _table(assets / "items.txt", world.items)
        self._user_vectors = tf.Variable(np.vstack([world.user_vectors, np.full((1, DIMENSION), 0.1, np.float32)]))
        self.item_vectors = tf.Variable(np.vstack([world.item_vectors, np.zeros((1, DIMENSION), np.float32)]))
        self._popularity = tf.Variable(np.append(world.popularity, np.float32(0)))
        self._unknown = {"user": len(world.users), "item": len(world.items)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="user_id"),
            tf.TensorSpec([None, None], tf.string, name="history"),
        ]
    )
    def query(self, user_id, history):
        # Most recent known items: the ragged rows keep their order, oldest first.
        rows = self._items.lookup(history)
        known = tf.ragged.boolean_mask(rows, rows >= 0)[:, -3:]
        vectors = tf.reduce_mean(tf.gather(self.item_vectors, known), axis=1)
        mean = tf.where(tf.math.is_nan(vectors), 0.0, vectors)
        users = self._users.lookup(user_id)
        users = tf.where(users < 0, tf.cast(self._unknown["user"], tf.int64), users)
        return {"embedding": tf.gather(self._user_vectors, users) + mean}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="user_id"),
            tf.TensorSpec([None, None], tf.string, name="history"),
            tf.TensorSpec([None, None, DIMENSION], tf.float32, name="candidates"),
        ]
    )
    def explain(self, user_id, history, candidates):
        """Two parts, the user and the history; of the items up to three, in the order of the history."""
        user = self.query(user_id, history[:, :0])["embedding"]
        vectors = tf.stack([user, self.query(user_id, history)["embedding"] - user], axis=1)
        rows = self._items.lookup(history)
        known = tf.ragged.boolean_mask(rows, rows >= 0)[:, -3:]
        names = tf.ragged.boolean_mask(history, rows >= 0)[:, -3:].to_tensor("", shape=[None, 3])
        each = (
            tf.gather(self.item_vectors, known) / tf.cast(known.row_lengths(), tf.float32)[:, None, None]
        ).to_tensor(shape=[None, 3, DIMENSION])
        asked, reasons = tf.shape(candidates)[1], tf.einsum("bnd,bhd->bnh", candidates, each)
        names = tf.repeat(names[:, tf.newaxis], asked, axis=1)
        batch = tf.shape(user_id)
        return {
            "part": tf.tile([["user_id", "history"]], [batch[0], 1]),
            "part_exact": tf.ones([batch[0], 2], tf.bool),
            "part_score": tf.einsum("bnd,bpd->bnp", candidates, vectors),
            "reason_item_id": names,
            "reason_score": tf.where(names == "", float("-inf"), reasons),
            "reason_exact": tf.ones(batch, tf.bool),
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="item_id"),
            tf.TensorSpec([None, None], tf.string, name="genres"),
        ]
    )
    def candidate(self, item_id, genres):
        rows = self._items.lookup(item_id)
        rows = tf.where(rows < 0, tf.cast(self._unknown["item"], tf.int64), rows)
        # The genres are read, as a real tower does, but do not matter.
        ignored = 0.0 * tf.cast(tf.shape(genres)[1], tf.float32)
        return {
            "embedding": tf.gather(self.item_vectors, rows) + ignored,
            "popularity": tf.gather(self._popularity, rows),
        }


def _table(file: Path, keys: list[str]) -> tf.lookup.StaticHashTable:
    file.write_text("".join(f"{key}\n" for key in keys))
    initializer = tf.lookup.TextFileInitializer(
        str(file), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    return tf.lookup.StaticHashTable(initializer, -1)


def _example(features: dict[str, list[bytes]]) -> bytes:
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
                for name, values in features.items()
                if values
            }
        )
    ).SerializeToString()
