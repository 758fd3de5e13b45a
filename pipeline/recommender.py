"""The pushed model on this machine: requests made from the tables, answers with titles, top-K for every user."""

from __future__ import annotations

import datetime
import functools
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modules.data import histories, tables
from modules.data.user_tables import UserRows, UserTables
from modules.encodings.base import MISSING_TIMESTAMP, Encoding
from modules.encodings.history import History
from modules.encodings.history_age import HistoryAge
from modules.encodings.timestamp import Timestamp
from modules.errors import UserError
from modules.nearest import MOST, meant, nearest
from modules.push_destination import newest_version
from modules.servable.contract import load, read_servable
from modules.servable.explained import Explanation, explanations
from pipeline import atomic
from pipeline.config import Config

BATCH = 256
_LARGEST = float(np.finfo(np.float32).max)
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
    """When the last item of the history was interacted with, in seconds since 1970; None for just now."""


class Recommender:
    """The newest pushed version and the tables that its requests are made from.

    Args:
        config: The configuration that the model was made with.
        now: Time of requests that name none, in seconds since 1970; by default when they are made.
        version: Another version than the newest.

    The model itself is loaded by the first answer, or by `load`.

    Raises:
        UserError: Nothing has been pushed, or the pushed model wants columns that the configuration does not describe.
    """

    def __init__(self, config: Config, now: int | None = None, version: int | None = None) -> None:
        self._now = now
        destination = config.push_destination
        self.version = int(newest_version(destination)) if version is None else version
        self._config = config
        self._interactions = config.tables.interactions
        plan = tables.check_tables(config.tables, config.split, config.features, config.evaluation, config.serving)
        self.tables = UserTables(config.tables, plan.users)
        self._path = os.path.join(destination, str(self.version))
        self.contract = read_servable(self._path)
        described = {f.column: f for f in config.features.query}
        self._wanted: dict[str, Encoding] = {}
        for fitted in self.contract.embedding.features.query:
            feature = described.get(fitted.column)
            if feature is None or (fitted.dtype, fitted.is_list) != (feature.dtype, feature.is_list):
                raise UserError(
                    f"version {self.version} asks for {fitted.column!r}, which the configuration does not describe"
                    f"{'' if feature is None else ' in the same way'}; use the configuration it was made with, "
                    "or run the pipeline again"
                )
            self._wanted[fitted.column] = feature

    @functools.cached_property
    def _model(self) -> Any:
        return load(self._path)

    def load(self) -> None:
        """Loads the model, as the first answer does: it takes seconds, and much that is wrong is known before it.

        Raises:
            UserError: It cannot be loaded.
        """
        _ = self._model

    def request(
        self, user: str | None, *, history: Sequence[str] | None = None, values: Mapping[str, Any] | None = None
    ) -> Request:
        """What the tables know of one user: attributes and history; both empty for an unknown one.

        Args:
            user: The user's id; None for an anonymous request.
            history: Items instead of those in the interactions table, oldest first.
            values: Values that replace or complete the attributes, by column.
        """
        known: dict[str, Any] = {}
        if user is not None:
            everything = self.tables.everything()
            known = self.tables.attributes(everything, {user}).get(user, {}) | {self._interactions.user: user}
            if history is None:
                of_user = self.tables.histories(everything, {user})
                return Request({**known, **(values or {})}, *of_user.get(user, ([], None)))
        return Request({**known, **(values or {})}, list(history or []))

    def given(self, column: str, texts: Sequence[str]) -> Any:
        """What a person gives for a column of the request, as the model reads it.

        Args:
            column: A query column that is neither the user's id nor the history.
            texts: The values given, one unless the column holds a list.

        Raises:
            UserError: The model does not ask for this column, or not for such a value.
        """
        where = f"--feature {column}={texts[-1]}"
        feature = self._wanted.get(column)
        if isinstance(feature, History):
            raise UserError(f"{where}: the items of a history are given with --history")
        if column == self._interactions.user:
            raise UserError(f"{where}: the user's id is given with --user")
        if feature is None:
            known = sorted(
                c for c, f in self._wanted.items() if c != self._interactions.user and not isinstance(f, History)
            )
            hint = meant(column, known, "correct the column's name")
            raise UserError(f"{where}: the model asks for {', '.join(known) or 'no features'}{hint}")
        if feature.is_list:
            separator = getattr(feature, "separator", None)
            parts = [part.strip() for text in texts for part in (text.split(separator) if separator else [text])]
            return [part for part in parts if part]
        if len(texts) > 1:
            raise UserError(f"--feature {column} is given {len(texts)} times; the column holds one value, keep one")
        if isinstance(feature, Timestamp):
            return seconds(texts[0], where)
        return _number(where, texts[0]) if feature.dtype == "float32" else texts[0]

    def requests(
        self, users: Iterable[str] | None = None, known: UserRows | None = None
    ) -> Iterator[tuple[str, Request]]:
        """(user id, request) for some users, or for every user of the tables, in the order of the tables.

        Args:
            users: Whose; None for everybody's that is known.
            known: What is known of them, by default everything that the tables have.
        """
        known = known or self.tables.everything()
        chosen = None if users is None else list(users)
        wanted = None if chosen is None else set(chosen)
        attributes, of_user = self.tables.attributes(known, wanted), self.tables.histories(known, wanted)
        for user in dict.fromkeys(itertools.chain(attributes, of_user)) if chosen is None else chosen:
            values = {**attributes.get(user, {}), self._interactions.user: user}
            yield user, Request(values, *of_user.get(user, ([], None)))

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
        self.check_filters(filters or {})
        return self._answers(self._ask(requests, exclude, filters or {}))

    def explain(self, request: Request, items: Sequence[str]) -> list[Explanation]:
        """What the scores of some items are made of.

        Args:
            request: One request.
            items: Of the catalogue.

        Raises:
            UserError: The model was made before it could be asked.
        """
        import tensorflow as tf

        if "explain" not in self.contract.signatures:
            raise UserError(f"--explain: version {self.version} was made before models explained their answers; "
                            "run the pipeline again")  # fmt: skip
        asked = tf.constant([list(items)], tf.string, [1, len(items)])
        outputs = self._model.signatures["explain"](**self._inputs([request]), explain=asked)
        return explanations(outputs, self._config.tables.items.title)[0]

    def similar(self, items: Sequence[str]) -> list[list[Recommendation]]:
        """The nearest items of each item; none for an unknown one."""
        import tensorflow as tf

        return self._answers(self._model.signatures["similar_items"](item_id=tf.constant(list(items))))

    def meant_item(self, text: str) -> str:
        """The end of a message about an item that the catalogue lacks: the one with the nearest title, or id."""
        from modules.servable import catalogue as catalogues

        if catalogues.size(self._path) > MOST:
            return ""
        catalogue, _ = catalogues.read(self._path)
        titles = catalogue.returned.get(self._config.tables.items.title or "", ())
        by_title = dict(zip(titles, catalogue.item_ids, strict=False))
        title = nearest(text, by_title)
        return f"; did you mean {by_title[title]!r}, {title}?" if title else meant(text, catalogue.item_ids)

    def write_batch(self, path: str, k: int, requests: Iterable[tuple[str, Request]]) -> int:
        """Writes the top k of some users as Parquet, a batch of users at a time; history left out.

        Args:
            path: The file; it appears whole or not at all.
            k: At most `serving.k` of the model.
            requests: (User id, request).

        Returns:
            The number of users.

        Raises:
            UserError: k is larger than the model's answers, or the file cannot be written.
        """
        self.check_k(k)
        count = 0
        with atomic.new_file(path) as file, pq.ParquetWriter(file, _OUTPUT_SCHEMA) as writer:
            left = iter(requests)
            while batch := list(itertools.islice(left, BATCH)):
                writer.write_table(self._rows(batch, k))
                count += len(batch)
        return count

    def check_k(self, k: int) -> None:
        """Refuses a k that the model has no answers for."""
        check_k(k, self.contract.k, self.version)

    def check_filters(self, columns: Iterable[str]) -> None:
        """Refuses columns that the model does not filter by."""
        known = self.contract.filter_columns
        for column in columns:
            if column not in known:
                hint = meant(column, known, "add the column to serving.filter_columns and run again")
                raise UserError(f"filter {column!r}: the model filters by {', '.join(known) or 'nothing'}{hint}")

    def _rows(self, batch: Sequence[tuple[str, Request]], k: int) -> pa.Table:
        outputs = self._ask([request for _, request in batch], (), {})
        ids, scores = (outputs[name].numpy()[:, :k] for name in ("item_id", "score"))
        # An answer is padded at its end.
        there = ids != b""
        users = np.array([user for user, _ in batch], object)
        ranks = np.broadcast_to(np.arange(1, ids.shape[1] + 1, dtype=np.int32), ids.shape)
        return pa.table(
            [
                pa.array(np.repeat(users, there.sum(axis=1)), pa.string()),
                ranks[there],
                pa.array(ids[there], pa.binary()).cast(pa.string()),
                scores[there],
                np.full(there.sum(), self.version),
            ],
            schema=_OUTPUT_SCHEMA,
        )

    def _ask(
        self, requests: Sequence[Request], exclude: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Mapping[str, Any]:
        """What the signature for such requests answers; arguments as `recommend` has them."""
        import tensorflow as tf

        inputs = self._inputs(requests)
        signature = "recommend_excluding" if exclude or filters else "serving_default"
        if exclude or filters:
            inputs["exclude"] = tf.constant([list(exclude)] * len(requests), tf.string, [len(requests), len(exclude)])
        if filters:
            signature = "recommend_filtered"
            for column in self.contract.filter_columns:
                values = list(filters.get(column, []))
                inputs[f"filter_{column}"] = tf.constant(
                    [values] * len(requests), tf.string, [len(requests), len(values)]
                )
        return self._model.signatures[signature](**inputs)

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Any]:
        """The query features of some requests, as every signature takes them."""
        import tensorflow as tf

        return {column: tf.constant(self._column(f, requests)) for column, f in self._wanted.items()}

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

    def _column(self, feature: Encoding, requests: Sequence[Request]) -> np.ndarray:
        """One input of the signature, [B] or [B, L] padded with ""."""
        if feature.is_list:
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
        if feature.dtype == "float32":
            return np.array([math.nan if v is None else float(v) for v in values], np.float32)
        return np.array(["" if v is None else _string(v) for v in values], object)

    def _asked(self, request: Request, column: str) -> int:
        """When it is asked, in seconds since 1970."""
        value = request.values.get(column)
        if value is not None:
            return int(value)
        return int(time.time()) if self._now is None else self._now

    def _age(self, request: Request) -> int | None:
        return histories.age(request.newest, self._asked(request, self._interactions.timestamp))


def check_k(k: int, most: int, version: int) -> None:
    """Refuses a k that a version, which answers with at most so many items, has no answers for."""
    if not 1 <= k <= most:
        raise UserError(f"--k {k}: version {version} answers with 1 to {most} items; "
                        "raise serving.k and run again for more")  # fmt: skip


def seconds(text: str, where: str) -> int:
    """A time that a person gives, in seconds since 1970; one without a zone is UTC.

    Raises:
        UserError: It is none; `where` says which argument.
    """
    try:
        if text.isdecimal():
            moment = int(text)
        else:
            parsed = datetime.datetime.fromisoformat(text)
            moment = int((parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp())
        # The inputs of a servable are int64, and below 0 is a missing time.
        if not 0 <= moment < 2**63:
            raise ValueError
        return moment
    except (ValueError, OverflowError):
        raise UserError(f"{where}: expected seconds since 1970, or a time such as 2026-11-23T09:00") from None


def _strings(value: Any) -> list[str | bytes]:
    if value is None:
        return []
    values = value if isinstance(value, (list, tuple)) else [value]
    return [_string(v) for v in values]


def _string(value: Any) -> str | bytes:
    # The bytes of a table go to the model as they are: a category need not be text.
    return value if isinstance(value, bytes) else str(value)


def _number(where: str, value: Any) -> float:
    try:
        # float() reads 1_000, too, which nothing else here does.
        number = math.nan if "_" in str(value) else float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise UserError(f"{where}: expected a number, not {value!r}")
    return number
