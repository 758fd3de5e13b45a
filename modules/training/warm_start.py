"""Weights of a servable as the start of the next fit: what both know keeps its rows, whatever has been added since."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from modules.encodings.features import Columns, Features
from modules.encodings.items import ITEM_VOCABULARY
from modules.encodings.text import Text
from modules.encodings.vocabulary import Vocabulary
from modules.servable.contract import OldContractError, read_servable
from modules.servable.embedding import read_variables
from modules.towers.terms import is_item_id
from modules.towers.two_tower import TwoTower

_PROGRESS = logging.getLogger("twotower.progress")
_TERM = re.compile(r"terms/(?:embedding|projection)_(\d+)/")
_COMPUTED = re.compile(
    r"cold_start|blend_\w+|item_item_history|item_item_items|lift|popularity_discount|has_interactions|new_item_offset|content_\w+"
)
_ITEM_TABLES = ("embeddings", "item_bias")


@dataclass(frozen=True)
class WarmStart:
    """Where a fit starts from."""

    servable: str
    """A version folder."""
    features: Features
    columns: Columns
    tft_output: tft.TFTransformOutput

    def apply(self, model: TwoTower) -> tuple[str, ...]:
        """Gives the model the servable's weights where the two have a variable in common.

        A table with a vocabulary is taken over row by row: a token that both know keeps its row, a new one keeps its
        fresh row. Other variables are taken over whole if their shapes agree. What is computed by every fit anew, the
        item-item model for instance, is left as it is. A servable of another contract starts nothing: a first fit.

        Returns:
            Names of what was taken over.

        Raises:
            UserError: The servable's contract cannot be read.
        """
        try:
            contract = read_servable(self.servable)
        except OldContractError as error:
            _PROGRESS.info("training.warm_start: a first fit, since %s", error)
            return ()
        theirs = read_variables(self.servable, contract.embedding)
        taken = []
        for name, feature, kind, variable in _named(self.features, self.columns, model):
            if name in theirs:
                tokens = self._tokens(self._vocabulary(feature, kind))
                merged = _taken_over(variable.numpy(), theirs[name], tokens)
                if merged is not None:
                    variable.assign(merged)
                    taken.append(name)
        return tuple(taken)

    def _vocabulary(self, feature: Any, kind: str) -> str | None:
        """Name of the vocabulary file of a table's rows, None for a variable without one."""
        if feature is None:
            return ITEM_VOCABULARY if kind in _ITEM_TABLES else None
        if "embedding" not in kind.partition("/")[0] or not isinstance(feature, (Vocabulary, Text)):
            return None
        return ITEM_VOCABULARY if feature.column == self.columns.item else feature.vocabulary

    def _tokens(self, vocabulary: str | None) -> tuple[list[bytes], list[bytes]] | None:
        if vocabulary is None:
            return None
        with tf.io.gfile.GFile(os.path.join(self.servable, "assets", vocabulary), "rb") as file:
            return file.read().splitlines(), self.tft_output.vocabulary_by_name(vocabulary)


def fitted_variables(features: Features, columns: Columns, model: TwoTower) -> dict[str, tf.Variable]:
    """What the next fit can take over, by names that do not depend on the order of the features."""
    return {named.name: named.variable for named in _named(features, columns, model)}


class _Named(NamedTuple):
    name: str
    feature: Any
    """The feature that it belongs to; None for a variable of the whole tower."""
    kind: str
    variable: tf.Variable


def _named(features: Features, columns: Columns, model: TwoTower) -> Iterator[_Named]:
    for tower, of_tower in (("query_tower", features.query), ("candidate_tower", features.candidate)):
        # As the towers number their terms: all features but the history and the candidate's own id.
        others = [f for f in of_tower if not f.of_history]
        if tower == "candidate_tower":
            others = [f for f in others if not is_item_id(f, columns)]
        for variable in getattr(model, tower).variables:
            kind = variable.name.removesuffix(":0")
            term = _TERM.search(kind)
            if term is None:
                if not _COMPUTED.fullmatch(kind):
                    yield _Named(f"{tower}/{kind}", None, kind, variable)
                continue
            feature = others[int(term[1])]
            kind = kind.rpartition("terms/")[2].replace(f"_{term[1]}/", "/")
            yield _Named(f"{tower}/{feature.rows_mean}:{feature.column}/{kind}", feature, kind, variable)


def _taken_over(
    fresh: np.ndarray, old: np.ndarray, tokens: tuple[list[bytes], list[bytes]] | None
) -> np.ndarray | None:
    """The fresh value with all that the old one knows; None if they do not fit together.

    A table's row 0 is for a missing value, the n-th token has row n, values out of vocabulary follow.
    """
    if tokens is None:
        return old if old.shape == fresh.shape else None
    before, now = tokens
    if old.shape[1:] != fresh.shape[1:]:
        return None
    merged = fresh.copy()
    place = {token: row for row, token in enumerate(before, start=1)}
    rows = [(new, place[token]) for new, token in enumerate(now, start=1) if token in place]
    oov = min(len(fresh) - len(now), len(old) - len(before)) - 1
    rows += [(0, 0)] + [(len(now) + n, len(before) + n) for n in range(1, oov + 1)]
    to, source = np.array(rows).T
    merged[to] = old[source]
    return merged
