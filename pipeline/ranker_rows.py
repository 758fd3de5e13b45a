"""Training rows for a ranking model, made of what the servable retrieved for some queries: their columns and values.

Two tables. `candidates` has a row for each retrieved candidate of each query, best first; queries follow one another.
`queries` has a row for each query, with what a copy in each of its rows would only make large: the history, and the
relevant items. Own columns have plain names; the features' are named `query_<column>` and `item_<column>`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

from modules import metrics
from modules.data.examples import RELEVANT
from modules.data.tables import Column, column_of
from modules.encodings.features import Columns, Features

CANDIDATES, QUERIES = "candidates", "queries"
"""The two tables, which are folders of the output."""
QUERY, USER, TIME, ITEM, RANK, SCORE, LABEL, WEIGHT = (
    "query", "user", "time", "item", "rank", "score", "label", "weight",
)  # fmt: skip
HISTORY = "history"
QUERY_PREFIX, ITEM_PREFIX = "query_", "item_"
ROLE, DESCRIPTION = "role", "description"
"""Keys of a column's metadata. A role is id, query, item, retrieval, label or weight; labels are no features."""

_ARROW = {"string": pa.string(), "float32": pa.float32(), "int64": pa.int64()}
_IN_EXAMPLES = {"string": schema_pb2.BYTES, "float32": schema_pb2.FLOAT, "int64": schema_pb2.INT}
_OWN = {
    QUERY: (pa.string(), "id", "the query: the user's id, a slash, and its number among the user's queries in time"),
    USER: (pa.string(), "id", "who asks"),
    TIME: (pa.int64(), "query", "when it is asked, in seconds since 1970"),
    ITEM: (pa.string(), "id", "the candidate"),
    RANK: (pa.int32(), "retrieval", "place in the answer, from 1; null where the item was injected"),
    SCORE: (pa.float32(), "retrieval", "the servable's score of the item"),
    LABEL: (pa.int8(), "label", "1 where the candidate is one of the query's relevant items, else 0"),
    WEIGHT: (pa.float32(), "weight", "1 / the row's probability of having been kept: 1 unless negatives were sampled"),
}


@dataclass(frozen=True)
class Layout:
    """Which columns rows have, and where their values are in examples.

    Args:
        features: As the servable's towers read them.
        names: The columns that make an interaction.
        returned: Further columns of the items, as lists of strings.
        facts: What is said of all rows; becomes metadata of both schemas.
    """

    features: Features
    names: Columns
    returned: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def query(self) -> list[Column]:
        """The query's features without the user's id, the time and the history, which are own columns."""
        named = (self.names.user, self.names.timestamp, self.history)
        return [column_of(f) for f in self.features.query if f.column not in named]

    @property
    def item(self) -> list[Column]:
        """The item's features and returned columns, without its id."""
        columns = {f.column: column_of(f) for f in self.features.candidate}
        columns |= {name: Column.any(name) for name in self.returned if name not in columns}
        columns.pop(self.names.item, None)
        return list(columns.values())

    @property
    def history(self) -> str | None:
        """Key of the history in examples."""
        return None if self.features.history is None else self.features.history.column

    def candidates_schema(self) -> pa.Schema:
        """Of the table `candidates`."""
        own = {name: _own(name) for name in _OWN}
        query = [
            _field(QUERY_PREFIX + c.name, _type(c), "query", f"column {c.name} of the query, as known when asked")
            for c in self.query
        ]
        items = [_field(ITEM_PREFIX + c.name, _type(c), "item", f"column {c.name} of the candidate") for c in self.item]
        first, last = [own.pop(name) for name in (QUERY, USER, TIME)], [own.pop(name) for name in (LABEL, WEIGHT)]
        return pa.schema([*first, *own.values(), *query, *items, *last], self._metadata())

    def queries_schema(self) -> pa.Schema:
        """Of the table `queries`."""
        texts = pa.list_(pa.string())
        fields = [_own(QUERY), _own(USER), _own(TIME)]
        if self.history is not None:
            fields.append(
                _field(HISTORY, texts, "query", "what the user had interacted with when asking, oldest first")
            )
        relevant = "the relevant items that an answer can hold, retrieved or not"
        return pa.schema([*fields, _field(RELEVANT, texts, "label", relevant)], self._metadata())

    def _metadata(self) -> dict[str, str]:
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.facts.items()}


def _own(name: str) -> pa.Field:
    return _field(name, *_OWN[name])


def _field(name: str, kind: pa.DataType, role: str, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={ROLE: role, DESCRIPTION: description})


def _type(column: Column) -> pa.DataType:
    return pa.list_(pa.string()) if column.multivalued else _ARROW[column.kind]


class Decoder:
    """Reads columns of serialized examples as Arrow arrays, null where an example lacks the value.

    Args:
        columns: Their keys and types.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        schema = schema_pb2.Schema()
        for column in columns:
            schema.feature.add(name=column.name, type=_IN_EXAMPLES[column.kind])
        self._decoder = ExamplesToRecordBatchDecoder(schema.SerializeToString())

    def __call__(self, serialized: Sequence[bytes]) -> dict[str, pa.Array]:
        """[B] values by key: scalars, or lists of strings where the column is multivalued."""
        batch = self._decoder.DecodeBatch(list(serialized))
        return {c.name: (batch.column(c.name) if c.multivalued else _first(batch.column(c.name))).cast(_type(c))
                for c in self._columns}  # fmt: skip


def _first(column: pa.LargeListArray) -> pa.Array:
    """The first value of each list, null where there is none."""
    starts = column.offsets.to_numpy()
    return column.values.take(pa.array(starts[:-1], mask=np.diff(starts) == 0))


class Catalogue:
    """The items' columns, by id.

    Args:
        serialized: The examples of the split `catalogue`.
        layout: Of the rows.
    """

    def __init__(self, serialized: Sequence[bytes], layout: Layout) -> None:
        values = Decoder([Column(name=layout.names.item, source=""), *layout.item])(serialized)
        self._rows = {item: row for row, item in enumerate(values.pop(layout.names.item).to_pylist())}
        self._values = values

    def of(self, items: Sequence[str]) -> dict[str, pa.Array]:
        """[N] values of some items by column, null for one that an update has added since."""
        rows = pa.array([self._rows.get(item) for item in items], pa.int64())
        return {name: values.take(rows) for name, values in self._values.items()}


@dataclass(frozen=True)
class Answers:
    """What the servable retrieved for B queries."""

    ids: np.ndarray
    """[B, K] objects of type bytes, best first, padded with b""."""
    scores: np.ndarray
    """[B, K] float32."""


@dataclass
class Counts:
    """What some queries add up to."""

    queries: int = 0
    rows: int = 0
    positives: int = 0
    missed: int = 0
    """Relevant items that were not retrieved."""
    injected: int = 0
    """Those of them that have a row all the same."""
    recall: float = 0.0
    """Sum over the queries that have a relevant item."""
    with_relevant: int = 0

    def add(self, others: Mapping[str, float]) -> None:
        """Adds what other queries add up to, as `vars` gives it."""
        for name, value in others.items():
            setattr(self, name, getattr(self, name) + value)


class Query:
    """One query with its answer: which of the candidates are kept, with their labels and weights.

    Args:
        key: The query's id.
        ids: [K'] the retrieved items, best first.
        scores: [K'] float32.
        relevant: The relevant items that an answer can hold.
        negatives: How many of the candidates that are not relevant are kept, at most; None for all.
    """

    def __init__(
        self, key: str, ids: Sequence[str], scores: np.ndarray, relevant: Sequence[str], negatives: int | None
    ) -> None:
        self.key = key
        self.relevant = relevant
        self.hits = metrics.hits(ids, relevant, len(ids))
        kept, self.weight = sample(key, self.hits, negatives)
        self.items = [ids[place] for place in kept]
        self.rank: list[int | None] = (kept + 1).tolist()
        self.score = scores[kept]
        self.label = self.hits[kept].astype(np.int8)
        retrieved = set(ids)
        self.missed = [item for item in relevant if item not in retrieved]

    def inject(self, scores: np.ndarray) -> None:
        """Adds the missed items that have a score, [M] float32 with −∞ for an item that is not in the catalogue."""
        there = np.flatnonzero(np.isfinite(scores))
        self.items += [self.missed[place] for place in there]
        self.rank += [None] * len(there)
        self.score = np.concatenate([self.score, scores[there]])
        self.label = np.concatenate([self.label, np.ones(len(there), np.int8)])
        self.weight = np.concatenate([self.weight, np.ones(len(there), np.float32)])


def sample(key: str, hits: np.ndarray, negatives: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which candidates of a query are kept: all hits, and a uniform draw of the others without replacement.

    Args:
        key: The query's id, the seed of its draw: the same however queries are cut into shards.
        hits: [K] bool.
        negatives: How many of the others; None for all.

    Returns:
        Places [N], rising; and weights [N] float32: 1 for a hit, and for another one over the probability of being
        kept, so that weighted sums over the kept are in expectation the sums over all.
    """
    kept, weight = np.ones(len(hits), bool), np.ones(len(hits), np.float32)
    misses = np.flatnonzero(~hits)
    if negatives is not None and len(misses) > negatives:
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
        drawn = np.random.default_rng(seed).choice(misses, negatives, replace=False)
        kept[misses] = False
        kept[drawn] = True
        weight[misses] = len(misses) / negatives
    return np.flatnonzero(kept), weight[kept]


def query_ids(users: Sequence[str], before: dict[str, int]) -> Iterator[str]:
    """The ids of queries that come by user in the order of time; `before` counts those of each user so far."""
    for user in users:
        number = before.get(user, 0)
        before[user] = number + 1
        yield f"{user}/{number}"


class Rows:
    """Makes the rows of the two tables, a batch of queries at a time.

    Args:
        layout: Their columns.
        catalogue: The items' values.
        excludes_history: Whether answers hold no item of the history, which is then not relevant.
        negatives: As `sample` has it.
    """

    def __init__(self, layout: Layout, catalogue: Catalogue, excludes_history: bool, negatives: int | None) -> None:
        self._layout, self._catalogue = layout, catalogue
        self._excludes_history, self._negatives = excludes_history, negatives
        lists = [RELEVANT] if layout.history is None else [RELEVANT, layout.history]
        names = layout.names
        self._decode = Decoder([
            Column(name=names.user, source=""), Column(name=names.timestamp, source="", kind="int64"),
            *layout.query, *(Column(name=name, source="", multivalued=True) for name in lists),
        ])  # fmt: skip
        self._schemas = layout.candidates_schema(), layout.queries_schema()
        self._before: dict[str, int] = {}

    def queries(self, serialized: Sequence[bytes], answers: Answers) -> tuple[list[Query], dict[str, pa.Array]]:
        """The queries of some examples, in their order, and their decoded columns [B].

        Args:
            serialized: Examples of one user after the other, each user's in the order of time.
            answers: To these queries.
        """
        columns = self._decode(serialized)
        history = self._layout.history
        seen = (
            columns[history].to_pylist() if history is not None and self._excludes_history else [None] * len(serialized)
        )
        queries = []
        keys = query_ids(columns[self._layout.names.user].to_pylist(), self._before)
        for key, ids, scores, relevant, known in zip(
            keys, answers.ids, answers.scores, columns[RELEVANT].to_pylist(), seen, strict=True
        ):
            there = [item.decode() for item in ids if item]
            # As the Evaluator counts: what an answer can never hold is not asked for.
            asked = dict.fromkeys(relevant or ())
            for item in known or ():
                asked.pop(item, None)
            queries.append(Query(key, there, scores[: len(there)], list(asked), self._negatives))
        return queries, columns

    def tables(self, queries: Sequence[Query], columns: Mapping[str, pa.Array]) -> tuple[pa.Table, pa.Table]:
        """The rows of `candidates` and of `queries`."""
        layout, names = self._layout, self._layout.names
        of_query = np.repeat(np.arange(len(queries)), [len(q.items) for q in queries])
        items = [item for q in queries for item in q.items]
        keys = pa.array([q.key for q in queries], pa.string())
        values: dict[str, Any] = {QUERY: keys, USER: columns[names.user], TIME: columns[names.timestamp]}
        values |= {QUERY_PREFIX + c.name: columns[c.name] for c in layout.query}
        values = {name: array.take(pa.array(of_query)) for name, array in values.items()}
        values |= {ITEM_PREFIX + name: array for name, array in self._catalogue.of(items).items()}
        values |= {
            ITEM: items,
            RANK: [rank for q in queries for rank in q.rank],
            SCORE: _joined([q.score for q in queries]),
            LABEL: _joined([q.label for q in queries]),
            WEIGHT: _joined([q.weight for q in queries]),
        }
        once: dict[str, Any] = {
            QUERY: keys, USER: columns[names.user], TIME: columns[names.timestamp],
            RELEVANT: [list(q.relevant) for q in queries],
        }  # fmt: skip
        if layout.history is not None:
            # No history is an empty one.
            once[HISTORY] = [items or [] for items in columns[layout.history].to_pylist()]
        candidates, asked = self._schemas
        return pa.table(values, candidates), pa.table(once, asked)


def count(queries: Sequence[Query], injected: int) -> Counts:
    """What the queries add up to, of whose missed items so many have a row."""
    answered = [q for q in queries if q.relevant]
    recalls = [q.hits.sum() / len(q.relevant) for q in answered]
    return Counts(
        queries=len(queries),
        rows=sum(len(q.items) for q in queries),
        positives=int(sum(q.label.sum() for q in queries)),
        missed=sum(len(q.missed) for q in queries),
        injected=injected,
        recall=float(sum(recalls)),
        with_relevant=len(answered),
    )


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)
