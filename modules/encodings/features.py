"""The section `features`: what each tower reads. Finds every encoding of this folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Field, model_validator

from modules.encodings.base import Encoding
from modules.encodings.history import History
from modules.encodings.history_age import HistoryAge
from modules.encodings.items import ItemIds
from modules.encodings.vocabulary import Vocabulary
from modules.settings.base import ColumnName, Settings


def _encodings() -> tuple[type[Encoding], ...]:
    """The encodings of this folder's files, by name: classes whose `encoding` is one word."""
    kinds: dict[str, type[Encoding]] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])):
        # This file is being imported, and this one needs TensorFlow.
        if name in ("features", "values"):
            continue
        for kind in vars(importlib.import_module(f"modules.encodings.{name}")).values():
            if inspect.isclass(kind) and issubclass(kind, Encoding):
                words = get_args(kind.model_fields["encoding"].annotation)
                if words:
                    kinds[words[0]] = kind
    return tuple(kinds[word] for word in sorted(kinds))


ENCODINGS = _encodings()

if TYPE_CHECKING:
    Feature = Encoding
else:
    Feature = Annotated[Union[ENCODINGS], Field(discriminator="encoding")]


class Columns(Settings):
    """The three columns that make an interaction."""

    user: ColumnName
    item: ColumnName
    timestamp: ColumnName


class Features(Settings):
    """What each tower reads."""

    query: tuple[Feature, ...] = Field(min_length=1)
    candidate: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unambiguous(self) -> Features:
        columns = [f.column for f in (*self.query, *self.candidate)]
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is described twice; a column is one feature of one tower")
        for feature in self.candidate:
            if feature.of_history:
                raise ValueError(f"{feature.encoding} belongs to the query tower")
        told = [f.encoding for f in self.query if f.of_history]
        for name in told:
            if told.count(name) > 1:
                raise ValueError(f"there can be one {name} feature")
        if self.history_age is not None and self.history is None:
            raise ValueError("history_age needs a history feature, whose age it is")
        return self

    @property
    def all(self) -> tuple[Encoding, ...]:
        """Of both towers."""
        return (*self.query, *self.candidate)

    @property
    def encodings(self) -> Features:
        """The same without the sizes of embeddings, which only the towers depend on."""

        def strip(feature: Any) -> Any:
            sized = "dimension" in type(feature).model_fields
            return feature.model_copy(update={"dimension": 1}) if sized else feature

        return Features(query=tuple(map(strip, self.query)), candidate=tuple(map(strip, self.candidate)))

    @property
    def history(self) -> History | None:
        return next((f for f in self.query if isinstance(f, History)), None)

    @property
    def history_age(self) -> HistoryAge | None:
        return next((f for f in self.query if isinstance(f, HistoryAge)), None)

    def item(self, columns: Columns) -> Vocabulary | None:
        """The feature of the item's own id, if the candidate tower has one."""
        of_item = (f for f in self.candidate if f.column == columns.item and isinstance(f, Vocabulary))
        return next(of_item, None)

    def items(self, columns: Columns) -> ItemIds:
        """The item vocabulary's limits, which history, sequences and labels share: those of the item id's feature."""
        feature = self.item(columns)
        if feature is None:
            return ItemIds(columns.item)
        return ItemIds(columns.item, feature.min_count, feature.max_size, feature.oov_buckets)
