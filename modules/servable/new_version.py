"""A new version of a pushed servable without training: the newest one is opened, and what it became is pushed.

What both kinds of updates share: who else publishes waits, versions rise, the warm-up requests are replayed, and the
version appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tensorflow as tf
from pydantic import BaseModel

from modules import push_destination as destinations
from modules.encodings.features import Features
from modules.errors import UserError
from modules.retrieval.brute_force import BruteForce
from modules.retrieval.stock import stock
from modules.retrieval.top_k import Partitions, SearchParameters, TopK, resolve_strategy
from modules.servable import catalogue as catalogues
from modules.servable import replay, signatures, user_snapshot, warmup
from modules.servable.catalogue import EmbeddedCatalogue
from modules.servable.contract import ServableContract, load, read_servable
from modules.servable.embedding import Embedding
from modules.servable.signatures import ServableModule
from modules.servable.user_snapshot import UserSnapshot
from modules.settings import Serving


class Updated(BaseModel):
    """An update that was pushed."""

    version: int
    updated_version: int
    """The version that it was made from."""
    seconds: float


_Outcome = TypeVar("_Outcome", bound=Updated)


@dataclass(frozen=True)
class Opened:
    """The newest version of a push destination, open to be updated; nobody else publishes meanwhile."""

    push_destination: str
    version: str
    contract: ServableContract
    catalogue: EmbeddedCatalogue
    partitions: Partitions | None
    users: UserSnapshot | None
    requests: Mapping[str, Sequence[Mapping[str, tf.Tensor]]]
    """Warm-up requests, by signature."""
    features: Features
    serving: Serving
    started: float

    @property
    def path(self) -> str:
        return os.path.join(self.push_destination, self.version)

    @functools.cached_property
    def embedding(self) -> Embedding:
        """Its towers. Loading them takes seconds, and much that is wrong with an update is known before."""
        return Embedding(load(self.path), self.contract.embedding)

    def index(self, partitions: Partitions | None, catalogue: EmbeddedCatalogue) -> TopK:
        """The same kind of index over a catalogue that is divided so."""
        contract, vectors = self.contract, catalogue.vectors[:]
        if contract.layer == "brute_force":
            return BruteForce(vectors)
        parameters = SearchParameters(contract.partitions_to_search, contract.reorder)
        if partitions is not None:
            if contract.reorder == 1:
                # Of before partitions had cells: all members of so many partitions.
                parameters = SearchParameters(contract.partitions_to_search, len(vectors))
            return stock(vectors, "tree", parameters, partitions)
        return stock(vectors, resolve_strategy(contract.strategy, len(vectors)), parameters)

    def push(
        self,
        catalogue: EmbeddedCatalogue,
        index: TopK,
        users: UserSnapshot | None,
        kind: type[_Outcome],
        **outcome: float,
    ) -> _Outcome:
        """Pushes what the version became.

        Args:
            catalogue: What can be recommended.
            index: Over its vectors.
            users: What is known of users.
            kind: Of the outcome.
            outcome: Its fields, but for those of `Updated`.

        Raises:
            UserError: The new version does not answer as it should, or cannot be written.
        """
        base = self.push_destination
        requests = self.requests if users is None else warmup.with_users(self.requests, users, self.features)
        contract = self.contract.model_copy(update={"catalogue_size": len(catalogue.item_ids)})
        try:
            with destinations.staging(base) as staging:
                staged = os.path.join(staging, self.version)
                with tempfile.TemporaryDirectory() as assets:
                    result = ServableModule(
                        self.embedding, catalogue, index, self.features, self.serving, contract.evaluation_k, assets,
                        users,
                    )  # fmt: skip
                    signatures.save(result, staged, contract, requests)
                stamp = destinations.read_stamp(self.path)
                if stamp:
                    destinations.write_text(staged, destinations.STAMP_PATH, stamp)
                failures = replay.replay(staged)["failures"]
                if failures:
                    raise UserError(
                        f"the updated version does not answer as it should: {failures[0]}; run the pipeline"
                    )
                pushed = kind(
                    version=destinations.next_version(base),
                    updated_version=int(self.version),
                    seconds=round(time.monotonic() - self.started, 2),
                    **outcome,
                )
                destinations.write_text(staged, destinations.UPDATE_PATH, pushed.model_dump_json(indent=2))
                # On a file system without locks, and for who copies a folder by hand, the lock is none.
                if destinations.newest_version(base) != self.version:
                    raise UserError(f"{base}: a newer version than {self.version} was pushed meanwhile; update again")
                destinations.publish(staged, base, pushed.version)
        except OSError as error:
            raise UserError(f"push to {base}: {error.strerror}; make room, or correct its rights") from None
        except tf.errors.OpError as error:
            raise UserError(
                f"version {self.version} or its update: {error.message}; make room, or run the pipeline"
            ) from None
        return pushed


@contextlib.contextmanager
def opened(push_destination: str, features: Features, serving: Serving) -> Iterator[Opened]:
    """Opens the newest version, while nobody else publishes: of two updates at once the second one changes what the
    first has pushed.

    Args:
        push_destination: The folder with the versions, a local one.
        features: As the newest version was made with.
        serving: As the newest version was made with.

    Raises:
        UserError: Nothing has been pushed, or the version cannot be updated.
    """
    if destinations.is_remote(push_destination):
        raise UserError(f"{push_destination}: only a local push destination can be updated; run the pipeline instead")
    started = time.monotonic()
    # Before the lock, which would make the folder.
    destinations.newest_version(push_destination)
    with destinations.exclusive(push_destination):
        newest = destinations.newest_version(push_destination)
        path = os.path.join(push_destination, newest)
        contract = read_servable(path)
        _check_updatable(contract, newest, features, serving)
        catalogue, partitions = catalogues.read(path)
        yield Opened(
            push_destination=push_destination,
            version=newest,
            contract=contract,
            catalogue=catalogue,
            partitions=partitions,
            users=user_snapshot.read(path) if contract.known_users else None,
            requests=warmup.read(path),
            features=features,
            serving=serving,
            started=started,
        )


def _check_updatable(contract: ServableContract, version: str, features: Features, serving: Serving) -> None:
    if contract.layer == "scann":
        raise UserError(
            f"version {version} is searched by ScaNN's own ops, whose index takes no items; run the pipeline, "
            "or use index.layer: stock"
        )
    history = features.history.column if features.history else None
    made_with = {
        "features.query": (contract.query_columns, tuple(f.column for f in features.query)),
        "the history feature": (contract.history_column, history),
        "serving.k": (contract.k, serving.k),
        "serving.exclude_history": (contract.exclude_history, serving.exclude_history),
        "serving.return_columns": (contract.return_columns, serving.return_columns),
        "serving.filter_columns": (contract.filter_columns, serving.filter_columns),
        "serving.max_per_value": (contract.max_per_value, serving.max_per_value),
    }
    for name, (was, is_) in made_with.items():
        if was != is_:
            raise UserError(
                f"{name} is {is_} but version {version} was made with {was}; use its configuration, or run the pipeline"
            )
