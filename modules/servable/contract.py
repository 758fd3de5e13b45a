"""What a servable says of itself: files beside its SavedModel, which others read instead of looking inside.

    saved_model.pb, variables/, assets/     the SavedModel; nobody but TensorFlow reads it
    assets.extra/servable.json              `ServableContract`
    assets.extra/catalogue.parquet          ids, vectors, popularity, returned and filter columns (catalogue.py)
    assets.extra/users.parquet              known users, where there are such (user_snapshot.py)
    assets.extra/partitions.parquet         centres of the partitions, where there are such (catalogue.py)
    assets.extra/tf_serving_warmup_requests requests that TF Serving replays before a version takes traffic (warmup.py)

The Trainer's export is the embedding model alone, and says what it is in assets.extra/embedding.json.

Imports nothing heavy: a command that finds nothing pushed need not wait for TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from modules.encodings.features import Features
from modules.errors import UserError
from modules.towers.layout import VectorLayout

CONTRACT_VERSION = 2
"""Rises when a client or a server of an older servable would misunderstand a newer one."""
SERVABLE_PATH = os.path.join("assets.extra", "servable.json")
EMBEDDING_PATH = os.path.join("assets.extra", "embedding.json")

QUERY_EMBEDDING, CANDIDATE_EMBEDDING = "query_embedding", "candidate_embedding"
EXPLAIN, EXPLAIN_EMBEDDING = "explain", "explain_embedding"
"""What scores are made of: those of items by their ids, or of any candidate vectors (`modules/towers/explanation.py`).
A servable that was made before there were such signatures has neither."""
RECOMMEND_USER = "recommend_user"
"""The signature of a servable that knows users."""
USER_ID, ITEM_ID, SCORE = "user_id", "item_id", "score"
EXCLUDE, FILTER_PREFIX = "exclude", "filter_"
"""Inputs beside the query's columns: items to leave out, and `filter_genres` for a filter column."""
CANDIDATES = "candidates"
"""Input of `explain_embedding`: vectors; the ids that `explain` asks about are in an input of its own name."""
REASON_PREFIX = "reason_"
EXPLANATION = ("part", "part_exact", "part_score", "reason_item_id", "reason_score", "reason_exact")
"""Outputs of both; `explain` adds `reason_title` for a returned column."""
EXAMPLES = "examples"
"""Input of `evaluate`, serialized examples; TFMA would take a column of that name for it."""
ITEM_IDS_FILE = "catalogue_item_ids.txt"

# Of a version in a push destination; whoever deletes it gets the one before, and a run makes it again.
_MAKE_ANEW = "delete the folder and run the pipeline again"
# What registers the custom ops of a namespace.
_REGISTERED_BY = {"Scann": "scann.scann_ops.py.scann_ops"}


class OldContractError(UserError):
    """A servable or an embedding model was written under another contract."""


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True)

    contract_version: int = CONTRACT_VERSION


class EmbeddingContract(_Contract):
    """`assets.extra/embedding.json`: the two towers, as the Trainer exports them."""

    features: Features
    """As the towers were fitted with, sizes of embeddings included."""
    layout: VectorLayout
    """Which dimensions of a vector mean what."""
    variables: dict[str, str]
    """What a warm start takes over: the name that the Trainer gives → the key in the SavedModel's checkpoint."""


class ServableContract(_Contract):
    """`assets.extra/servable.json`: what must be known of a servable before loading it."""

    model: str
    """Its name in requests."""
    k: int
    """Items in an answer."""
    evaluation_k: int
    """Items in an answer of `evaluate`."""
    layer: Literal["stock", "scann", "brute_force"]
    strategy: Literal["exact", "quantized", "tree"]
    partitions_to_search: int
    reorder: int
    catalogue_size: int
    dimension: int
    query_columns: tuple[str, ...]
    history_column: str | None
    exclude_history: bool
    return_columns: tuple[str, ...]
    filter_columns: tuple[str, ...]
    max_per_value: dict[str, int] = {}
    """Column → items of each of its values in a recommendation at most."""
    embedding: EmbeddingContract
    known_users: int = 0
    """Users whose features and histories it has; with 0 there is no `recommend_user`."""
    signatures: dict[str, tuple[str, ...]] = {}
    """Signature → names of its inputs."""
    ops: tuple[str, ...] = ()
    """Custom ops that it needs, `Scann>…`; a server that does not know them cannot load it."""
    item_ids: str = os.path.join("assets", ITEM_IDS_FILE)
    """A file with the id of each row, one a line."""


def read_servable(folder: str) -> ServableContract:
    """Reads a servable's contract without loading the servable.

    Raises:
        OldContractError: It was written under another contract.
        UserError: There is none, or it cannot be read.
    """
    return _read(folder, SERVABLE_PATH, ServableContract)


def read_embedding(folder: str) -> EmbeddingContract:
    """Reads the contract of the Trainer's export.

    Raises:
        OldContractError: It was written under another contract.
        UserError: There is none, or it cannot be read.
    """
    return _read(folder, EMBEDDING_PATH, EmbeddingContract)


def load(folder: str) -> Any:
    """Loads a servable, and first the ops that it needs.

    Raises:
        OldContractError: It was written under another contract.
        UserError: It cannot be loaded, or lacks a signature that it should have.
    """
    import tensorflow as tf

    contract = read_servable(folder)
    register(contract.ops)
    try:
        loaded = tf.saved_model.load(folder)
    except Exception as error:
        # Whatever TensorFlow's readers raise on bytes that are no model, of a dozen types.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder} does not load, a file of it may be damaged: {reason}; {_MAKE_ANEW}") from None
    missing = sorted(set(contract.signatures) - set(loaded.signatures))
    if missing:
        raise UserError(f"{folder} is no servable: it has no signature {missing[0]!r}; {_MAKE_ANEW}")
    return loaded


def custom_ops(folder: str) -> tuple[str, ...]:
    """The custom ops of a SavedModel, by name: those in a namespace, `Scann>…`."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    with tf.io.gfile.GFile(os.path.join(folder, "saved_model.pb"), "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    graphs = [meta_graph.graph_def for meta_graph in saved.meta_graphs]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for function in graph.library.function for node in function.node_def]
    return tuple(sorted({node.op for node in nodes if ">" in node.op}))


def register(ops: Iterable[str]) -> None:
    """Makes custom ops known to TensorFlow, which must happen before a SavedModel that has them is loaded."""
    import importlib

    for module in registering(ops):
        importlib.import_module(module)


def registering(ops: Iterable[str]) -> tuple[str, ...]:
    """The modules whose import makes custom ops known."""
    namespaces = {op.partition(">")[0] for op in ops}
    return tuple(module for namespace, module in sorted(_REGISTERED_BY.items()) if namespace in namespaces)


_AnyContract = TypeVar("_AnyContract", bound=_Contract)


def _read(folder: str, name: str, kind: type[_AnyContract]) -> _AnyContract:
    content = _content(os.path.join(folder, name))
    if content is None:
        raise UserError(f"{folder}: {name} is missing; {_MAKE_ANEW}")
    try:
        version = _Version.model_validate_json(content).contract_version
        if version == CONTRACT_VERSION:
            return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{folder}: {name} cannot be read ({where}{first['msg']}); {_MAKE_ANEW}") from None
    raise OldContractError(
        f"{folder} was written under contract version {version}, and this code reads {CONTRACT_VERSION}; "
        "run the pipeline again"
    )


class _Version(BaseModel):
    contract_version: int


def _content(path: str) -> bytes | None:
    """None where there is no such file."""
    if "://" not in path:
        try:
            with open(path, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
    import tensorflow as tf

    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()
