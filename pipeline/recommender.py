"""The pushed model on this machine: requests made from the tables, answers with titles, top-K for every user."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.baseline_resolver.versions import latest_version
from modules.data import columns, histories, tables
from modules.data.histories import Interactions
from modules.errors import UserError
from modules.features import MISSING_TIMESTAMP, Feature, History, HistoryAge, Timestamp, dtype, is_list
from modules.servable.contract import load, read_servable
from pipeline.config import Config

BATCH = 256
_OUTPUT_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string()), ("score", pa.float32()),
     ("model_version", pa.int64())]
)  # fmt: skip


@dataclass(frozen=True)
class Recommendation:
    """One item of an answer."""

    rank: int
    item_id: str
    title: str
    score: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """Who asks: raw values by query column, and the history, oldest first."""

    values: Mapping[str, Any]
    history: Sequence[str]
    newest: int | None = None
    """When the last item of the history was taken up, in seconds since 1970; None for just now."""


class Recommender:
    """The newest pushed version and the tables that its requests are made from.

    Args:
        config: The configuration that the model was made with.
        now: Time of requests that name none, in seconds since 1970; by default when they are made.

    Raises:
        UserError: Nothing has been pushed, or the pushed model wants columns that the configuration does not describe.
    """

    def __init__(self, config: Config, now: int | None = None) -> None:
        self._now = now
        destination = config.push_destination
        newest = latest_version(destination)
        if not newest:
            raise UserError(f"no model in {destination}: nothing has been pushed yet; start with `twotower run`")
        self.version = int(newest)
        self._config = config
        self._interactions = config.tables.interactions
        self._plan = tables.check_tables(
            config.tables, config.split, config.features, config.evaluation, config.serving
        )
        path = os.path.join(destination, newest)
        self.contract = read_servable(path)
        self._model = load(path)
        self._features = {f.column: f for f in config.features.query}
        wanted = self._model.signatures["serving_default"].structured_input_signature[1]
        unknown = sorted(set(wanted) - set(self._features))
        if unknown:
            raise UserError(
                f"version {self.version} asks for {unknown[0]!r}, which the configuration does not describe; "
                "use the configuration it was made with, or run the pipeline again"
            )
        self._wanted = {column: self._features[column] for column in wanted}

    def request(
        self, user: str | None, *, history: Sequence[str] | None = None, values: Mapping[str, Any] | None = None
    ) -> Request:
        """What the tables know of one user: attributes and history; both empty for an unknown one.

        Args:
            user: The user's id; None for an anonymous request.
            history: Items instead of those in the interactions table, oldest first.
            values: Values that replace or complete the attributes, by column.
        """
        found: dict[str, Any] = {}
        if user is not None:
            found = self._attributes({user}).get(user, {}) | {self._interactions.user: user}
            if history is None:
                return Request({**found, **(values or {})}, *self._histories({user}).get(user, ([], None)))
        return Request({**found, **(values or {})}, list(history or []))

    def requests(self, users: Sequence[str] | None) -> Iterator[tuple[str, Request]]:
        """(user id, request) for some users, or for every user of the tables, in the order of the tables."""
        wanted = None if users is None else set(users)
        attributes, histories = self._attributes(wanted), self._histories(wanted)
        everyone = list(dict.fromkeys([*attributes, *histories])) if users is None else users
        for user in everyone:
            values = {**attributes.get(user, {}), self._interactions.user: user}
            yield user, Request(values, *histories.get(user, ([], None)))

    def recommend(
        self,
        requests: Sequence[Request],
        *,
        exclude: Sequence[str] = (),
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> list[list[Recommendation]]:
        """The answers to some requests, best first, at most `serving.k` items each.

        Args:
            requests: B requests.
            exclude: Items to leave out of every answer, beside the request's own history.
            filters: Required values by filter column; an item must have one of them for each column.

        Raises:
            UserError: A filter column is not one of `serving.filter_columns`.
        """
        import tensorflow as tf

        inputs = {column: tf.constant(self._column(f, requests)) for column, f in self._wanted.items()}
        signature = "recommend_excluding" if exclude or filters else "serving_default"
        if exclude or filters:
            inputs["exclude"] = tf.constant([list(exclude)] * len(requests), tf.string, [len(requests), len(exclude)])
        if filters:
            signature = "recommend_filtered"
            known = self._config.serving.filter_columns
            for column in filters:
                if column not in known:
                    raise UserError(f"filter {column!r}: the model filters by {', '.join(known) or 'nothing'}; "
                                    "add the column to serving.filter_columns and run again")  # fmt: skip
            for column in known:
                values = list(filters.get(column, []))
                inputs[f"filter_{column}"] = tf.constant(
                    [values] * len(requests), tf.string, [len(requests), len(values)]
                )
        return self._answers(self._model.signatures[signature](**inputs))

    def similar(self, items: Sequence[str]) -> list[list[Recommendation]]:
        """The nearest items of each item; none for an unknown one."""
        import tensorflow as tf

        return self._answers(self._model.signatures["similar_items"](item_id=tf.constant(list(items))))

    def write_batch(self, path: str, k: int, users: Sequence[str] | None = None) -> int:
        """Writes the top k of every user (or of a list) as Parquet, a batch of users at a time; history left out.

        Args:
            path: The file; it appears whole or not at all.
            k: At most `serving.k` of the model.

        Returns:
            The number of users.

        Raises:
            UserError: k is larger than the model's answers, or the file cannot be written.
        """
        if not 1 <= k <= self.contract.k:
            raise UserError(f"--k {k}: version {self.version} answers with 1 to {self.contract.k} items; "
                            "raise serving.k and run again for more")  # fmt: skip
        partial = f"{path}.partial"
        count = 0
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            with pq.ParquetWriter(partial, _OUTPUT_SCHEMA) as writer:
                batch: list[tuple[str, Request]] = []
                for pair in self.requests(users):
                    batch.append(pair)
                    if len(batch) == BATCH:
                        writer.write_table(self._rows(batch, k))
                        count += len(batch)
                        batch = []
                if batch:
                    writer.write_table(self._rows(batch, k))
                    count += len(batch)
            os.replace(partial, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        finally:
            if os.path.exists(partial):
                os.remove(partial)
        return count

    def _rows(self, batch: Sequence[tuple[str, Request]], k: int) -> pa.Table:
        answers = self.recommend([request for _, request in batch])
        rows = [(user, r) for (user, _), answer in zip(batch, answers, strict=True) for r in answer[:k]]
        return pa.table(
            [
                [user for user, _ in rows],
                [r.rank for _, r in rows],
                [r.item_id for _, r in rows],
                [r.score for _, r in rows],
                [self.version] * len(rows),
            ],
            schema=_OUTPUT_SCHEMA,
        )

    def _answers(self, outputs: Mapping[str, Any]) -> list[list[Recommendation]]:
        ids, scores = outputs["item_id"].numpy(), outputs["score"].numpy()
        column = self._config.tables.items.title
        titles = outputs[column].numpy() if column is not None and column in outputs else np.full_like(ids, b"")
        return [
            [
                Recommendation(rank + 1, item.decode(), title.decode(), float(score))
                for rank, (item, title, score) in enumerate(zip(*row, strict=True))
                if item
            ]
            for row in zip(ids, titles, scores, strict=True)
        ]

    def _column(self, feature: Feature, requests: Sequence[Request]) -> np.ndarray:
        """One input of the signature, [B] or [B, L] padded with ""."""
        if is_list(feature):
            lists = [
                list(r.history) if isinstance(feature, History) else _strings(r.values.get(feature.column))
                for r in requests
            ]
            width = max(map(len, lists), default=0)
            return np.array([row + [""] * (width - len(row)) for row in lists], object).reshape(len(lists), width)
        values = [r.values.get(feature.column) for r in requests]
        if isinstance(feature, Timestamp):
            return np.array([self._asked(r, feature.column) for r in requests] or [MISSING_TIMESTAMP], np.int64)
        if isinstance(feature, HistoryAge):
            values = [self._age(r) if v is None else v for v, r in zip(values, requests, strict=True)]
        if dtype(feature) == "float32":
            return np.array([math.nan if v is None else _number(feature, v) for v in values], np.float32)
        return np.array(["" if v is None else _string(v) for v in values], object)

    def _asked(self, request: Request, column: str) -> int:
        """When it is asked, in seconds since 1970."""
        value = request.values.get(column)
        if value is not None:
            return int(value)
        return int(time.time()) if self._now is None else self._now

    def _age(self, request: Request) -> int | None:
        return histories.age(request.newest, self._asked(request, self._interactions.timestamp))

    def _attributes(self, users: set[str] | None) -> dict[str, dict[str, Any]]:
        """What the users table says, by user and column; everybody's for None."""
        table = self._config.tables.users
        if table is None:
            return {}
        found: dict[str, dict[str, Any]] = {}
        for batch in _batches("users", table.path, [table.id, *(c.source for c in self._plan.users)]):
            values = [(c.name, columns.cells(batch, c)[0]) for c in self._plan.users]
            for row, user in enumerate(_decoded(columns.ids(batch.column(table.id)))):
                if users is None or user in users:
                    found[user] = {name: cells[row] for name, cells in values if cells[row] is not None}
        return found

    def _histories(self, users: set[str] | None) -> dict[str, tuple[list[str], int]]:
        """Items by user, oldest first, and the time of the last, as the pipeline's examples have them."""
        names = self._interactions
        asked = None if users is None else {user.encode() for user in users}
        found: dict[bytes, list[Interactions]] = {}
        start = 0
        for batch in _batches("interactions", names.path, [names.user, names.item, names.timestamp]):
            who, what = (np.array(columns.ids(batch.column(c)), object) for c in (names.user, names.item))
            times, timeless, _ = columns.seconds(batch.column(names.timestamp))
            rows = Interactions(times, start + np.arange(batch.num_rows), what, np.ones(batch.num_rows, np.float32))
            start += batch.num_rows
            wanted = np.array([user is not None if asked is None else user in asked for user in who], bool)
            wanted &= ~timeless & np.array([item is not None for item in what], bool)
            for user, piece in histories.by_user(who[wanted], rows.take(wanted)):
                found.setdefault(user, []).append(piece)
        ordered = {user.decode(): histories.in_time_order(pieces) for user, pieces in found.items()}
        return {user: (_decoded(of.item), int(of.timestamp[-1])) for user, of in ordered.items()}


def _batches(table: str, path: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for number, file in enumerate(tables.files(table, path)):
        for part in tables.parts(number, file):
            for _, batch in tables.read(part, names):
                yield batch


def _decoded(values: Sequence[bytes | None] | np.ndarray) -> list[str]:
    return ["" if value is None else value.decode() for value in values]


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, (list, tuple)) else [value]
    return [_string(v) for v in values]


def _string(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(feature: Feature, value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{feature.column}: expected a number, not {value!r}") from None
