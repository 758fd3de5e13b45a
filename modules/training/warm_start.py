"""Weights of a servable as the start of the next fit: what both know keeps its rows, whatever has been added since."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from modules.errors import UserError
from modules.features import ITEM_VOCABULARY, Columns, Features, Text, Vocabulary, is_of_history
from modules.preprocessing import vocabulary_name
from modules.two_tower import TwoTower, is_item_id

SPECIFICATION = "specification"
"""Attribute of the exported embedding model: the JSON of the features that it was fitted with."""

_TERM = re.compile(r"terms/(?:embedding|projection)_(\d+)/")
_COMPUTED = re.compile(r"(no_history|linear_history|linear_items|trend|popularity_discount|is_known|content_\w+):0")
_ITEM_TABLES = ("embeddings:0", "item_bias:0")


@dataclass(frozen=True)
class Start:
    """Where a fit starts from."""

    servable: str
    """A version folder."""
    features: Features
    columns: Columns
    tft_output: tft.TFTransformOutput

    def apply(self, model: TwoTower) -> list[str]:
        """Gives the model the servable's weights where the two have a variable in common.

        A table with a vocabulary is taken over row by row: a token that both know keeps its row, a new one keeps its
        fresh row. Other variables are taken over whole if their shapes agree. What is computed by every fit anew, the
        closed-form part for instance, is left as it is.

        Returns:
            Names of what was taken over.

        Raises:
            UserError: The servable does not say what its weights belong to.
        """
        if _layer(self.servable) == "scann":
            from scann.scann_ops.py import scann_ops  # noqa: F401 (registers the ops that the servable has)
        old = tf.saved_model.load(self.servable)._embedding
        if not hasattr(old, SPECIFICATION):
            raise UserError(
                f"training.warm_start: {self.servable} was pushed before models could be started from; "
                "run once without it"
            )
        before = Features.model_validate_json(getattr(old, SPECIFICATION).numpy().decode())
        taken = []
        for tower, was, now in (
            ("query_tower", before.query, self.features.query),
            ("candidate_tower", before.candidate, self.features.candidate),
        ):
            theirs = dict(self._named(tower, getattr(old, tower).variables, was))
            for (column, name), variable in self._named(tower, getattr(model, tower).variables, now):
                value = theirs.get((column, name))
                if value is None or _COMPUTED.fullmatch(name):
                    continue
                vocabulary = self._vocabulary(column, name, now)
                merged = _taken_over(variable.numpy(), value.numpy(), self._tokens(vocabulary))
                if merged is not None:
                    variable.assign(merged)
                    taken.append(f"{tower}/{column or name}")
        return taken

    def _named(
        self, tower: str, variables: Sequence[tf.Variable], features: Sequence[Any]
    ) -> Iterator[tuple[tuple[str, str], tf.Variable]]:
        """Variables under the column that they belong to and their own name, which does not depend on the order."""
        # As the towers number their terms: all features but the history and the candidate's own id.
        others = [f for f in features if not is_of_history(f)]
        if tower == "candidate_tower":
            others = [f for f in others if not is_item_id(f, self.columns)]
        for variable in variables:
            term = _TERM.search(variable.name)
            if term is None:
                yield ("", variable.name), variable
            else:
                feature = others[int(term[1])]
                kind = variable.name.rpartition("terms/")[2].replace(f"_{term[1]}/", "/")
                yield (f"{feature.encoding}:{feature.column}", kind), variable

    def _vocabulary(self, column: str, name: str, features: Sequence[Any]) -> str | None:
        """Name of the vocabulary file of a table's rows, None for a variable without one."""
        if not column:
            return ITEM_VOCABULARY if name in _ITEM_TABLES else None
        feature = next(f for f in features if column == f"{f.encoding}:{f.column}")
        if "embedding" not in name.partition("/")[0] or not isinstance(feature, (Vocabulary, Text)):
            return None
        return ITEM_VOCABULARY if feature.column == self.columns.item else vocabulary_name(feature)

    def _tokens(self, vocabulary: str | None) -> tuple[list[bytes], list[bytes]] | None:
        if vocabulary is None:
            return None
        with tf.io.gfile.GFile(os.path.join(self.servable, "assets", vocabulary), "rb") as file:
            return file.read().splitlines(), self.tft_output.vocabulary_by_name(vocabulary)


def _layer(servable: str) -> str:
    with tf.io.gfile.GFile(os.path.join(servable, "assets.extra", "servable.json")) as file:
        return json.load(file)["layer"]


def _taken_over(
    fresh: np.ndarray, old: np.ndarray, tokens: tuple[list[bytes], list[bytes]] | None
) -> np.ndarray | None:
    """The fresh value with all that the old one knows; None if they do not fit together.

    A table's row 0 is for a missing value, the n-th token has row n, unknown values follow.
    """
    if tokens is None:
        return old if old.shape == fresh.shape else None
    before, now = tokens
    if old.shape[1:] != fresh.shape[1:]:
        return None
    merged = fresh.copy()
    place = {token: row for row, token in enumerate(before, start=1)}
    rows = [(new, place[token]) for new, token in enumerate(now, start=1) if token in place]
    unknown = min(len(fresh) - len(now), len(old) - len(before)) - 1
    rows += [(0, 0)] + [(len(now) + n, len(before) + n) for n in range(1, unknown + 1)]
    to, source = np.array(rows).T
    merged[to] = old[source]
    return merged
