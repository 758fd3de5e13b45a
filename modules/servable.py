"""The servable: query tower, catalogue and index as one SavedModel with the signatures that clients call.

Rows (positions in the catalogue) follow popularity, the most popular item first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ValidationError
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from modules import retrieval
from modules.errors import UserError
from modules.features import EXAMPLES, EXCLUDE, FILTER_PREFIX, ITEM_ID, SCORE, Features
from modules.preprocessing import column_from_examples, requests_from_examples
from modules.retrieval import TopK
from modules.settings import Serving

CONTRACT_VERSION = 1
"""Rises when a client or a server of an older servable would misunderstand a newer one."""
DESCRIPTION_PATH = os.path.join("assets.extra", "servable.json")
WARMUP_PATH = os.path.join("assets.extra", "tf_serving_warmup_requests")
"""Where TF Serving looks for requests to replay before a version takes traffic."""

HEAD_SHARE = 0.1
"""Share of the catalogue that counts as the popular head in `evaluate`."""

# Of a version in a push destination; whoever deletes it gets the one before, and a run makes it again.
_MAKE_ANEW = "delete the folder and run the pipeline again"

_ITEM_IDS_FILE = "catalogue_item_ids.txt"
_FILTER_VALUES_FILE = "filter_values_{}.txt"
_LIST_SEPARATOR = "|"
# Neighbours are rescored by cosine among this multiple of k.
_SIMILAR_OVERFETCH = 5
_WARMUP_SINGLE = 4
_WARMUP_BATCH = 16
# Queries in the warm-up requests for `query_embedding`, by which an update measures its recall.
_RECALL_QUERIES = 256


@dataclass(frozen=True)
class Catalogue:
    """What can be recommended, one row per item. Build it with `by_popularity`."""

    item_ids: Sequence[str]
    vectors: np.ndarray
    """[C, D] float32 candidate embeddings."""
    popularity: np.ndarray
    """[C] float32 training interactions."""
    returned: Mapping[str, Sequence[str]]
    """Column → one string per row, for `serving.return_columns`."""
    attributes: Mapping[str, Sequence[Sequence[str]]]
    """Column → the values of each row, for `serving.filter_columns`."""

    def by_popularity(self) -> Catalogue:
        """The same items, the most popular first, equally popular ones by id: the order that rows must have."""
        return self.only(sorted(range(len(self.item_ids)), key=lambda row: (-self.popularity[row], self.item_ids[row])))

    def only(self, rows: Sequence[int] | np.ndarray) -> Catalogue:
        """Some of the rows, in this order."""
        return Catalogue(
            [self.item_ids[row] for row in rows],
            self.vectors[rows],
            self.popularity[rows],
            {column: [values[row] for row in rows] for column, values in self.returned.items()},
            {column: [values[row] for row in rows] for column, values in self.attributes.items()},
        )

    def followed_by(self, less_popular: Catalogue) -> Catalogue:
        """These rows, then others with the same columns."""
        return Catalogue(
            [*self.item_ids, *less_popular.item_ids],
            np.concatenate([self.vectors, less_popular.vectors]),
            np.concatenate([self.popularity, less_popular.popularity]),
            {column: [*values, *less_popular.returned[column]] for column, values in self.returned.items()},
            {column: [*values, *less_popular.attributes[column]] for column, values in self.attributes.items()},
        )


class Description(BaseModel):
    """`assets.extra/servable.json`: what a server or a validator must know of a servable before loading it."""

    contract_version: int = CONTRACT_VERSION
    model: str
    k: int
    """Items in an answer."""
    evaluation_k: int
    """Items in an answer of `evaluate`."""
    layer: str
    strategy: str
    partitions_to_search: int
    reorder: int
    catalogue_size: int
    dimension: int
    query_columns: tuple[str, ...]
    history_column: str | None
    exclude_history: bool
    return_columns: tuple[str, ...]
    filter_columns: tuple[str, ...]
    signatures: dict[str, tuple[str, ...]]
    """Signature → names of its inputs."""
    item_ids: str = os.path.join("assets", _ITEM_IDS_FILE)
    """A file with the id of each row, one a line."""


def candidate_requests(examples: tf.Tensor, features: Features, item_column: str) -> dict[str, tf.Tensor]:
    """Serialized catalogue examples [B] as requests to `candidate_embedding`: candidate features and the item id."""
    requests = requests_from_examples(examples, features.candidate)
    if item_column not in requests:
        requests[item_column] = column_from_examples(examples, item_column)[:, 0]
    return requests


def check(catalogue: Catalogue, features: Features, serving: Serving) -> None:
    """Refuses what cannot be served.

    Raises:
        UserError: The catalogue is empty or smaller than an answer, an id comes twice, an id or a filter value has a
            line break, an embedding is not finite, or a column has the name of an input or output.
    """
    size = len(catalogue.item_ids)
    if not size:
        raise UserError("the catalogue is empty: the items table has no rows to recommend; check tables.items.path")
    if serving.k > size:
        raise UserError(f"serving.k is {serving.k} but the catalogue has {size} items; set it to {size} or less")
    seen: set[str] = set()
    for item_id in catalogue.item_ids:
        if item_id in seen:
            raise UserError(f"item {item_id!r} is twice in the catalogue; tables.items needs one row per item")
        if not item_id or "\n" in item_id or "\r" in item_id:
            raise UserError(f"item id {item_id!r} is empty or has a line break; correct it in tables.items")
        seen.add(item_id)
    broken = np.flatnonzero(~np.isfinite(catalogue.vectors).all(axis=1))
    if len(broken):
        raise UserError(
            f"the embedding of item {catalogue.item_ids[broken[0]]!r} is not finite ({len(broken)} of {size} items): "
            "training diverged; lower training.learning_rate"
        )
    for column in serving.return_columns:
        if column in (ITEM_ID, SCORE):
            raise UserError(f"serving.return_columns: {column!r} is an output of its own; remove it")
    for feature in features.query:
        if feature.column == EXCLUDE or feature.column.startswith(FILTER_PREFIX):
            raise UserError(f"features.query: {feature.column!r} is the name of another input; rename the column")
    for column in serving.filter_columns:
        values = {value for of_row in catalogue.attributes[column] for value in of_row if value}
        if not values:
            raise UserError(f"serving.filter_columns: no item has a value in {column!r}; remove it")
        for value in values:
            if "\n" in value or "\r" in value:
                raise UserError(f"serving.filter_columns: {column!r} has the value {value!r} with a line break")


class Servable(tf.Module):
    """Everything that is served, evaluated and pushed.

    Args:
        embedding: The Trainer's loaded SavedModel with the signatures `query_embedding` and `candidate_embedding`.
        catalogue: Items in the order of popularity, as the index has them.
        index: Built over `catalogue.vectors`.
        features: Which query columns are in an example, and which is the history.
        serving: What an answer holds.
        evaluation_k: Items in an answer of `evaluate`.
        assets: An existing folder for the tables' files; it must live until the servable has been saved.
    """

    def __init__(
        self,
        embedding: Any,
        catalogue: Catalogue,
        index: TopK,
        features: Features,
        serving: Serving,
        evaluation_k: int,
        assets: str,
    ) -> None:
        super().__init__()
        self._embedding = embedding
        self.index = index
        self._features = features
        self._serving = serving
        self._evaluation_k = evaluation_k
        self._item_rows = _table(os.path.join(assets, _ITEM_IDS_FILE), catalogue.item_ids, default=retrieval.NO_ROW)
        self._item_ids = tf.Variable(_bytes(catalogue.item_ids), trainable=False)
        self._returned = {
            column: tf.Variable(_bytes(catalogue.returned[column]), trainable=False)
            for column in serving.return_columns
        }
        self._attributes = {
            column: Attribute(catalogue.attributes[column], os.path.join(assets, _FILTER_VALUES_FILE.format(number)))
            for number, column in enumerate(serving.filter_columns)
        }
        self.size = len(catalogue.item_ids)
        self.dimension = catalogue.vectors.shape[1]

    def signatures(self) -> dict[str, Any]:
        """Every signature by name, as traced functions; DESIGN.md, "Contracts", has their inputs and outputs."""
        query = self._inputs("query_embedding")
        exclude = {EXCLUDE: tf.TensorSpec([None, None], tf.string, name=EXCLUDE)}
        names = [FILTER_PREFIX + column for column in self._attributes]
        filters = {name: tf.TensorSpec([None, None], tf.string, name=name) for name in names}
        functions: dict[str, tuple[Callable[..., dict[str, tf.Tensor]], dict[str, tf.TensorSpec]]] = {
            "serving_default": (self._recommend, query),
            "recommend_excluding": (self._recommend, {**query, **exclude}),
            "recommend_filtered": (self._recommend, {**query, **exclude, **filters}),
            "similar_items": (self._similar_items, {ITEM_ID: tf.TensorSpec([None], tf.string, name=ITEM_ID)}),
            "query_embedding": (self._embedding.signatures["query_embedding"], query),
            "candidate_embedding": (
                self._embedding.signatures["candidate_embedding"],
                self._inputs("candidate_embedding"),
            ),
            "evaluate": (self._evaluate, {EXAMPLES: tf.TensorSpec([None], tf.string, name=EXAMPLES)}),
        }
        return {
            # Without AutoGraph, which has nothing to do here and takes most of a trace's time.
            name: tf.function(_with_keywords(function), autograph=False).get_concrete_function(**specs)
            for name, (function, specs) in functions.items()
        }

    def rows(self, item_ids: tf.Tensor) -> tf.Tensor:
        """Rows of item ids, int32 of the same shape; -1 for unknown ones and padding."""
        return tf.cast(self._item_rows.lookup(item_ids), tf.int32)

    def _inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        specs = self._embedding.signatures[signature].structured_input_signature[1]
        return {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}

    def _embed(self, requests: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return self._embedding.signatures["query_embedding"](**requests)["embedding"]

    def _recommend(self, **requests: tf.Tensor) -> dict[str, tf.Tensor]:
        exclude = requests.pop(EXCLUDE, None)
        filters = {column: requests.pop(FILTER_PREFIX + column, None) for column in self._attributes}
        queries = self._embed(requests)
        kept_out = [tf.zeros([tf.shape(queries)[0], 0], tf.int32)]
        history = self._features.history
        if history is not None and self._serving.exclude_history:
            kept_out.append(self.rows(requests[history.column]))
        if exclude is not None:
            kept_out.append(self.rows(exclude))
        allowed = None
        for column, wanted in filters.items():
            if wanted is not None:
                has_one = self._attributes[column].rows_with(wanted, self.size)
                allowed = has_one if allowed is None else allowed & has_one
        scores, rows = self.index.search(queries, self._serving.k, tf.concat(kept_out, axis=1), allowed)
        return self._answer(scores, rows)

    def _similar_items(self, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
        """Neighbours by cosine, among the best by inner product: the latter alone favours popular items."""
        own = self.rows(item_id)[:, tf.newaxis]
        # Where the embedding model says which dimensions make items alike, the others count for nothing.
        counted = getattr(self._embedding, "similarity", None)
        vectors = self.index.vectors(tf.maximum(own[:, 0], 0)) * (1.0 if counted is None else counted)
        _, rows = self.index.search(vectors, min(_SIMILAR_OVERFETCH * self._serving.k, self.size), own)
        neighbours = self.index.vectors(tf.maximum(rows, 0)) * (1.0 if counted is None else counted)
        neighbours = tf.math.l2_normalize(neighbours, axis=-1)
        cosine = tf.linalg.matvec(neighbours, tf.math.l2_normalize(vectors, axis=-1))
        rows = tf.where(own == retrieval.NO_ROW, retrieval.NO_ROW, rows)
        return self._answer(*retrieval.best(cosine, rows, self._serving.k, own))

    def _evaluate(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Rankings for the Evaluator; items of the example's history count as seen."""
        requests = requests_from_examples(examples, self._features.query)
        queries = self._embed(requests)
        batch, k = tf.shape(queries)[0], self._evaluation_k
        nothing = tf.zeros([batch, 0], tf.int32)
        history = self._features.history
        seen = nothing if history is None else self.rows(requests[history.column])
        # As many as an answer has, then the first of them: a search for fewer looks at less.
        answer = max(k, self._serving.k)
        scores, rows = (found[:, :k] for found in self.index.search(queries, answer, seen))
        rows_with_seen = self.index.search(queries, answer, nothing)[1][:, :k]
        # Rows are in the order of popularity, so the most popular unseen items are the first rows that are not seen.
        first = tf.range(tf.minimum(k + tf.shape(seen)[1], self.size))
        popular = tf.tile(first[tf.newaxis], [batch, 1])
        _, popular = retrieval.best(-tf.cast(popular, tf.float32), popular, k, seen)
        head = (rows != retrieval.NO_ROW) & (rows < int(np.ceil(HEAD_SHARE * self.size)))
        return {
            "classes": self._ids(rows),
            "scores": scores,
            "classes_with_seen": self._ids(rows_with_seen),
            "popular": self._ids(popular),
            "head": tf.cast(head, tf.float32),
            "catalogue_size": tf.fill([batch], float(self.size)),
        }

    def _answer(self, scores: tf.Tensor, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        returned = {column: _strings(values, rows) for column, values in self._returned.items()}
        return {ITEM_ID: self._ids(rows), SCORE: scores, **returned}

    def _ids(self, rows: tf.Tensor) -> tf.Tensor:
        return _strings(self._item_ids, rows)


class Attribute(tf.Module):
    """Which rows have a value: each value's rows one after the other, so that a filter reads only those it asks for.

    Args:
        values: The values of each row.
        file: Where the lookup table's file is written.
    """

    def __init__(self, values: Sequence[Sequence[str]], file: str) -> None:
        super().__init__()
        pairs = sorted({(value, row) for row, of_row in enumerate(values) for value in of_row if value})
        vocabulary = sorted({value for value, _ in pairs})
        ids = {value: number for number, value in enumerate(vocabulary)}
        counts = np.bincount([ids[value] for value, _ in pairs], minlength=len(vocabulary))
        end = np.cumsum(counts, dtype=np.int32)
        # Unknown values look up one more than the last: a value without rows.
        self._ids = _table(file, vocabulary, default=len(vocabulary))
        self._first = tf.Variable(np.append(end - counts, end[-1:]).astype(np.int32), trainable=False)
        self._end = tf.Variable(np.append(end, end[-1:]).astype(np.int32), trainable=False)
        self._rows = tf.Variable(np.array([row for _, row in pairs], np.int32), trainable=False)

    def rows_with(self, wanted: tf.Tensor, size: int) -> tf.Tensor:
        """[B, size] bool: the rows that have at least one of the wanted values [B, F]; all of them if all are ""."""
        ids = tf.reshape(self._ids.lookup(wanted), [-1])
        ranges = tf.ragged.range(tf.gather(self._first, ids), tf.gather(self._end, ids))
        rows = tf.gather(self._rows, ranges.flat_values)
        batch, count = tf.unstack(tf.shape(wanted))
        request = tf.gather(tf.repeat(tf.range(batch), count), ranges.value_rowids())
        hits = tf.scatter_nd(tf.stack([request, rows], axis=1), tf.ones_like(rows), [batch, size])
        return (hits > 0) | tf.reduce_all(wanted == "", axis=1, keepdims=True)


def save(servable: Servable, path: str, description: Description, warmup: Mapping[str, Sequence[Any]]) -> None:
    """Writes a version folder as TF Serving reads it.

    Args:
        servable: What to save.
        path: The folder, local or remote.
        description: For `assets.extra/servable.json`; its signatures are filled in here.
        warmup: Signature → requests (name → tensor) that TF Serving replays when it loads the version.
    """
    signatures = servable.signatures()
    options = tf.saved_model.SaveOptions(namespace_whitelist=list(servable.index.namespaces))
    tf.saved_model.save(servable, path, signatures=signatures, options=options)
    inputs = {name: tuple(sorted(f.structured_input_signature[1])) for name, f in signatures.items()}
    tf.io.gfile.makedirs(os.path.join(path, os.path.dirname(DESCRIPTION_PATH)))
    with tf.io.gfile.GFile(os.path.join(path, DESCRIPTION_PATH), "w") as file:
        file.write(description.model_copy(update={"signatures": inputs}).model_dump_json(indent=2))
    with tf.io.TFRecordWriter(os.path.join(path, WARMUP_PATH)) as writer:
        for signature, requests in warmup.items():
            for request in requests:
                writer.write(_prediction_log(description.model, signature, request).SerializeToString())


def load_description(path: str) -> Description:
    """Reads a servable's description without loading the servable.

    Raises:
        UserError: It is not there, or is not one.
    """
    file = os.path.join(path, DESCRIPTION_PATH)
    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            return Description.model_validate_json(stream.read())
    except tf.errors.OpError as error:
        reason = "is missing" if isinstance(error, tf.errors.NotFoundError) else f"cannot be read ({error.message})"
        raise UserError(f"{path} is no servable: {DESCRIPTION_PATH} {reason}; {_MAKE_ANEW}") from None
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        where = ".".join(map(str, mistake["loc"]))
        raise UserError(
            f"{path} is no servable: {DESCRIPTION_PATH}: {where}{': ' if where else ''}{mistake['msg']}; {_MAKE_ANEW}"
        ) from None


def load(path: str) -> Any:
    """Loads a servable with TensorFlow, and first the ops that it needs.

    Raises:
        UserError: It cannot be loaded, or is not what its description says.
    """
    description = load_description(path)
    if description.layer == "scann":
        import scann  # noqa: F401  (registers its TensorFlow ops)
    try:
        loaded = tf.saved_model.load(path)
    except Exception as error:
        # Whatever TensorFlow's readers raise on bytes that are no model, of a dozen types.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{path} does not load, a file of it may be damaged: {reason}; {_MAKE_ANEW}") from None
    missing = sorted(set(description.signatures) - set(loaded.signatures))
    if missing:
        raise UserError(f"{path} is no servable: it has no signature {missing[0]!r}; {_MAKE_ANEW}")
    return loaded


def embedding_of(loaded: Any) -> tf.Module:
    """The embedding model inside a loaded servable, without its index, as `Servable` takes it."""
    embedding = tf.Module()
    # What the signatures read: their variables and tables.
    embedding.model = loaded._embedding
    # What is read beside them: by similar items, and by a warm start.
    for name in ("similarity", "specification", "query_tower", "candidate_tower"):
        if hasattr(loaded._embedding, name):
            setattr(embedding, name, getattr(loaded._embedding, name))
    embedding.signatures = {name: loaded.signatures[name] for name in ("query_embedding", "candidate_embedding")}
    return embedding


def read_catalogue(loaded: Any, path: str, description: Description) -> Catalogue:
    """The catalogue of a loaded servable; its popularity is falling numbers, since only the order is kept.

    Args:
        loaded: The servable.
        path: The folder it was loaded from.
        description: Its description.
    """
    item_ids = _lines(os.path.join(path, description.item_ids))
    size = len(item_ids)
    attributes: dict[str, list[list[str]]] = {}
    for number, column in enumerate(description.filter_columns):
        values = _lines(os.path.join(path, "assets", _FILTER_VALUES_FILE.format(number)))
        first, end, rows = (
            getattr(loaded._attributes[column], name).numpy() for name in ("_first", "_end", "_rows")
        )  # fmt: skip
        of_row: list[list[str]] = [[] for _ in range(size)]
        for value, start, stop in zip(values, first, end, strict=False):
            for row in rows[start:stop]:
                of_row[row].append(value)
        attributes[column] = of_row
    returned = {c: [value.decode() for value in loaded._returned[c].numpy()] for c in description.return_columns}
    popularity = np.arange(size, 0, -1, dtype=np.float32)
    return Catalogue(item_ids, retrieval.vectors_of(loaded.index), popularity, returned, attributes)


def values(example: tf.train.Example, column: str) -> list[str]:
    """A column's values as strings, whatever their type; 3.0 is "3"."""
    feature = example.features.feature[column]
    if feature.HasField("bytes_list"):
        return [value.decode("utf-8", "replace") for value in feature.bytes_list.value]
    if feature.HasField("int64_list"):
        return [str(value) for value in feature.int64_list.value]
    return [f"{value:.7g}" for value in feature.float_list.value]


def warmup_requests(
    catalogue: Catalogue, features: Features, serving: Serving, item_column: str, queries: Sequence[bytes],
    items: Sequence[bytes],
) -> dict[str, list[dict[str, tf.Tensor]]]:  # fmt: skip
    """Requests for every signature, single ones and a batch, made from real examples; more for `query_embedding`.

    Args:
        catalogue: Where excluded items and filter values are taken from.
        features: Which columns a request has.
        serving: The filters there are.
        item_column: Column of the item id.
        queries: Serialized eval examples, at least one.
        items: Serialized catalogue examples, at least one.
    """
    result: dict[str, list[dict[str, tf.Tensor]]] = {}
    sizes = [slice(n, n + 1) for n in range(min(_WARMUP_SINGLE, len(queries)))] + [slice(0, _WARMUP_BATCH)]
    for chosen in sizes:
        examples = tf.constant(list(queries[chosen]), tf.string)
        request = requests_from_examples(examples, features.query)
        batch = int(examples.shape[0])
        exclude = {EXCLUDE: tf.constant([list(catalogue.item_ids[:2])] * batch, tf.string)}
        filters = {
            FILTER_PREFIX + column: tf.constant([[_most_common(catalogue.attributes[column])]] * batch, tf.string)
            for column in serving.filter_columns
        }
        item_ids = tf.constant(list(catalogue.item_ids[chosen]), tf.string)
        some_items = tf.constant(list(items[chosen] or items[:1]), tf.string)
        for signature, inputs in {
            "serving_default": request,
            "recommend_excluding": {**request, **exclude},
            "recommend_filtered": {**request, **exclude, **filters},
            "similar_items": {ITEM_ID: item_ids if len(item_ids) else tf.constant([catalogue.item_ids[0]])},
            "query_embedding": request,
            "candidate_embedding": candidate_requests(some_items, features, item_column),
            "evaluate": {EXAMPLES: examples},
        }.items():
            result.setdefault(signature, []).append(inputs)
    for start in range(_WARMUP_BATCH, min(len(queries), _RECALL_QUERIES), _WARMUP_BATCH):
        examples = tf.constant(list(queries[start : start + _WARMUP_BATCH]), tf.string)
        result["query_embedding"].append(requests_from_examples(examples, features.query))
    return result


def joined(values: Sequence[str]) -> str:
    """The values of one row as one output string."""
    return _LIST_SEPARATOR.join(values)


def _lines(path: str) -> list[str]:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read().decode().split("\n")[:-1]


def _most_common(values: Sequence[Sequence[str]]) -> str:
    return Counter(value for of_row in values for value in of_row if value).most_common(1)[0][0]


def _prediction_log(model: str, signature: str, request: Mapping[str, tf.Tensor]) -> prediction_log_pb2.PredictionLog:
    predict = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=model, signature_name=signature),
        inputs={name: tf.make_tensor_proto(value) for name, value in request.items()},
    )
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=predict))


def _with_keywords(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own for each signature, with the keyword arguments that tf.function names the inputs after."""
    return lambda **inputs: function(**inputs)


def _table(file: str, keys: Sequence[str], default: int) -> tf.lookup.StaticHashTable:
    """String → position, from a file that is saved with the model: a server initialises the table by itself."""
    with open(file, "w", encoding="utf-8", newline="") as lines:
        lines.writelines(f"{key}\n" for key in keys)
    initializer = tf.lookup.TextFileInitializer(
        file, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    return tf.lookup.StaticHashTable(initializer, default)


def _strings(values: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    return tf.where(rows == retrieval.NO_ROW, "", tf.gather(values, tf.maximum(rows, 0)))


def _bytes(values: Sequence[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], object)
