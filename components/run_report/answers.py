"""What the servable answers to a sample of the eval queries, and what its catalogue has of the items in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from sklearn.decomposition import PCA

from modules.data.examples import RELEVANT
from modules.encodings.features import Features
from modules.encodings.timestamp import Timestamp
from modules.preprocessing import column_from_examples, requests_from_examples
from modules.servable import catalogue, contract
from modules.servable.contract import EXPLAIN, ServableContract
from modules.servable.explained import Explanation, explanations

DECILES = 10
_BATCH = 256
_USERS = 5
_RECOMMENDED = 5
_NEWEST = 8
_CHOSEN_NEXT = 5
MAPPED = 2_000
"""Items of the map at most."""
# The map's items come from so many places of the catalogue: a row group of it is 16 MiB of vectors.
_PLACES = 16


@dataclass(frozen=True)
class Item:
    """An item in words."""

    item_id: str
    title: str


@dataclass(frozen=True)
class Recommended:
    """An item that was recommended, and why."""

    item: Item
    score: float
    explanation: Explanation | None
    """None where the servable explains nothing."""
    chosen_next: bool
    """Whether the user has chosen it then."""


@dataclass(frozen=True)
class Asked:
    """A user of the eval split, and what the servable recommends."""

    user: str
    attributes: Mapping[str, str]
    """Query feature → its value; what is missing is left out."""
    time: int | None
    """Of asking, in seconds since 1970."""
    history: tuple[Item, ...]
    """The newest items of it, newest first."""
    history_length: int
    chosen_next: tuple[tuple[Item, int | None], ...]
    """Items that were chosen then, with the rank that they had; None where they were not in the ranking."""
    recommended: tuple[Recommended, ...]


@dataclass(frozen=True)
class Popularity:
    """Shares by decile of the catalogue, most popular tenth first, [10] each; a share of nothing is NaN."""

    interactions: np.ndarray
    """Of the training interactions."""
    recommendations: np.ndarray
    """Of what is recommended to the sample, at `k` items each."""
    chosen: np.ndarray
    """Of what the sample chose then."""
    queries: int
    k: int


@dataclass(frozen=True)
class ItemMap:
    """Items in two dimensions, [N] each."""

    x: np.ndarray
    y: np.ndarray
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    """Values of `category`, for each item."""
    popularity: np.ndarray
    """Training interactions."""
    category: str
    """The column; "" where the catalogue has none."""
    catalogue_size: int
    explained: float
    """Share of the vectors' variance that lies in the two dimensions."""


@dataclass(frozen=True)
class Answers:
    """All of it."""

    users: tuple[Asked, ...]
    popularity: Popularity


def ask(folder: str, records: Sequence[bytes], k: int, user: str, title: str | None) -> Answers:
    """Asks a servable.

    Args:
        folder: The servable.
        records: Serialized examples of the eval split.
        k: Length of the rankings whose popularity is looked at.
        user: Column of the user's id.
        title: Column of the items' titles, where there is one.

    Raises:
        UserError: It cannot be loaded.
    """
    has = contract.read_servable(folder)
    model = contract.load(folder)
    rankings, relevant = [], []
    for start in range(0, len(records), _BATCH):
        batch = tf.constant(list(records[start : start + _BATCH]), tf.string)
        rankings += model.signatures["evaluate"](batch)["classes"].numpy().tolist()
        relevant += column_from_examples(batch, RELEVANT).numpy().tolist()
    chosen = _different(records, has)
    picked = [records[number] for number in chosen]
    requests = requests_from_examples(tf.constant(picked, tf.string), has.embedding.features.query)
    answered = model.signatures["serving_default"](**requests)
    recommended = answered["item_id"].numpy()[:, :_RECOMMENDED]
    reasons: list[list[Explanation]] = [[] for _ in picked]
    if EXPLAIN in has.signatures:
        reasons = explanations(model.signatures[EXPLAIN](**requests, **{EXPLAIN: tf.constant(recommended)}), title)

    histories = _histories(requests, has)
    wanted = {item for ranking in rankings for item in ranking[:k]} | {item for items in relevant for item in items}
    wanted |= {item for history in histories for item in history} | set(recommended.ravel().tolist())
    known = _look_up(folder, wanted - {b""}, title)

    def item(item_id: bytes) -> Item:
        return Item(item_id.decode("utf-8", "replace"), known.get(item_id, (0, ""))[1])

    users = []
    for place, number in enumerate(chosen):
        then = [each for each in relevant[number] if each]
        ranks = {each: rank for rank, each in enumerate(rankings[number], 1) if each}
        scores = answered["score"].numpy()[place].tolist()
        each_reason: Sequence[Explanation | None] = reasons[place] or [None] * _RECOMMENDED
        users.append(
            Asked(
                user=_text(column_from_examples(tf.constant([picked[place]]), user).numpy().ravel().tolist()),
                attributes=_attributes(requests, has.embedding.features, user, place),
                time=_time(requests, has.embedding.features, place),
                history=tuple(item(each) for each in histories[place][::-1][:_NEWEST]),
                history_length=len(histories[place]),
                chosen_next=tuple((item(each), ranks.get(each)) for each in then[:_CHOSEN_NEXT]),
                recommended=tuple(
                    Recommended(item(each), score, reason, each in then)
                    for each, score, reason in zip(recommended[place].tolist(), scores, each_reason, strict=False)
                    if each
                ),
            )
        )
    interactions = _popularity(folder)
    rows = {item_id: row for item_id, (row, _) in known.items()}
    popularity = Popularity(
        interactions=by_decile(np.arange(len(interactions)), interactions, len(interactions)),
        recommendations=_counted([ranking[:k] for ranking in rankings], rows, len(interactions)),
        chosen=_counted(relevant, rows, len(interactions)),
        queries=len(records),
        k=k,
    )
    return Answers(tuple(users), popularity)


def by_decile(rows: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Share of the weights in each tenth of a catalogue, [10]; NaN where there are none.

    Args:
        rows: Rows of the catalogue, which is in the order of popularity, [N] int.
        weights: [N].
        size: Of the catalogue.
    """
    counts = np.bincount(rows * DECILES // size, weights, minlength=DECILES)
    total = counts.sum()
    return counts / total if total else np.full(DECILES, np.nan)


def item_map(folder: str, title: str | None) -> ItemMap:
    """The catalogue's vectors by their first two principal components; a sample of a large catalogue.

    The vectors are those by which items are alike, at length 1, as `similar_items` compares them. The sample is evenly
    from all degrees of popularity.

    Raises:
        UserError: The catalogue cannot be read.
    """
    has = contract.read_servable(folder)
    size = has.catalogue_size
    category = has.filter_columns[0] if has.filter_columns else ""
    columns = ["item_id", "vector", "popularity", *(["returned"] if has.return_columns else ())]
    columns += ["filterable"] if category else []
    parts: list[pa.Table] = []
    groups = catalogue.row_groups(folder, columns, _PLACES)
    rows = sum(len(part) for _, part in catalogue.row_groups(folder, ["popularity"], _PLACES))
    wanted, before = np.unique(np.linspace(0, rows - 1, min(MAPPED, rows)).round().astype(int)), 0
    for _, part in groups:
        inside = wanted[(wanted >= before) & (wanted < before + len(part))] - before
        parts.append(part.take(inside))
        before += len(part)
    table = pa.concat_tables(parts)
    vectors = has.embedding.layout.similarity.of(catalogue.matrix(table["vector"]))
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    # Of one item, or of vectors of one dimension, there are no two components.
    pca = PCA(min(2, *vectors.shape), random_state=0).fit(vectors)
    places = np.pad(pca.transform(vectors), ((0, 0), (0, 2 - pca.n_components_)))
    titles = catalogue.fields(table, "returned").get(title or "", table["item_id"].to_pylist())
    of_items = catalogue.fields(table, "filterable")[category] if category else [()] * len(table)
    return ItemMap(
        x=places[:, 0],
        y=places[:, 1],
        titles=tuple(titles),
        categories=tuple(tuple(values) for values in of_items),
        popularity=table["popularity"].to_numpy(),
        category=category,
        catalogue_size=size,
        explained=float(np.nan_to_num(pca.explained_variance_ratio_).sum()),
    )


def _different(records: Sequence[bytes], has: ServableContract) -> list[int]:
    """Numbers of queries with short, middling and long histories."""
    lengths = np.zeros(len(records))
    if has.history_column is not None:
        for number, record in enumerate(records):
            feature = tf.train.Example.FromString(record).features.feature
            lengths[number] = len(feature[has.history_column].bytes_list.value)
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(order), min(_USERS, len(order)), endpoint=False) + len(order) / (2 * _USERS)
    return order[np.minimum(places.astype(int), len(order) - 1)].tolist()


def _histories(requests: Mapping[str, tf.Tensor], has: ServableContract) -> list[list[bytes]]:
    """Oldest first."""
    if has.history_column is None:
        return [[] for _ in next(iter(requests.values()))]
    return [[item for item in row if item] for row in requests[has.history_column].numpy().tolist()]


def _look_up(folder: str, wanted: set[bytes], title: str | None) -> dict[bytes, tuple[int, str]]:
    """(Row, title) of the wanted items that the catalogue has."""
    has = contract.read_servable(folder)
    columns = ["item_id", *(["returned"] if title in has.return_columns else ())]
    values = pa.array([item.decode("utf-8", "replace") for item in wanted], pa.string())
    found: dict[bytes, tuple[int, str]] = {}
    for start, part in catalogue.row_groups(folder, columns):
        places = np.flatnonzero(pc.is_in(part["item_id"], values).to_numpy())
        chosen = part.take(places)
        titles = catalogue.fields(chosen, "returned").get(title or "", [""] * len(chosen))
        for place, item_id, words in zip(places.tolist(), chosen["item_id"].to_pylist(), titles, strict=True):
            found[item_id.encode()] = start + place, words
    return found


def _popularity(folder: str) -> np.ndarray:
    groups = catalogue.row_groups(folder, ["popularity"])
    return np.concatenate([part["popularity"].to_numpy() for _, part in groups])


def _counted(rankings: Sequence[Sequence[bytes]], rows: Mapping[bytes, int], size: int) -> np.ndarray:
    places = np.array([rows[item] for ranking in rankings for item in ranking if item in rows], np.int64)
    return by_decile(places, np.ones(len(places)), size)


def _attributes(requests: Mapping[str, tf.Tensor], features: Features, user: str, place: int) -> dict[str, str]:
    told = {}
    for feature in features.query:
        if feature.of_history or feature.column == user or isinstance(feature, Timestamp):
            continue
        value = requests[feature.column].numpy()[place]
        text = _text(value.tolist() if feature.is_list else [value])
        if text not in ("", "nan"):
            told[feature.column] = text
    return told


def _time(requests: Mapping[str, tf.Tensor], features: Features, place: int) -> int | None:
    columns = [feature.column for feature in features.query if isinstance(feature, Timestamp)]
    times = [int(requests[column].numpy()[place]) for column in columns]
    return next((time for time in times if time >= 0), None)


def _text(values: Sequence[Any]) -> str:
    texts = (v.decode("utf-8", "replace") if isinstance(v, bytes) else f"{v:g}" for v in values)
    return ", ".join(text for text in texts if text)
