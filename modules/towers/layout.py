"""Which dimensions of a query's and a candidate's vector mean what: the one place that counts columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

from modules.settings import Model

_Vectors = TypeVar("_Vectors")


class Dimensions(NamedTuple):
    """The dimensions `start` … `stop` − 1 of a vector."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def of(self, vectors: _Vectors) -> _Vectors:
        """[N, D] → [N, size]: these columns of an array or a tensor."""
        return vectors[:, self.start : self.stop]  # type: ignore[index]


@dataclass(frozen=True)
class VectorLayout:
    """The slices of a vector, in this order; an inner product adds up what each of them scores."""

    learned: Dimensions
    """Fitted by gradient descent; without `model.normalize` the last of them is the item's bias, which meets a 1."""
    item_item: Dimensions
    """Low-rank factors of the item-item model; empty without one."""
    lift: Dimensions
    """One dimension: the recent popularity lift of the candidate, and how much it counts for the query."""
    discount: Dimensions
    """What `model.diversity` takes off for popularity; empty without it."""
    similarity: Dimensions
    """The dimensions by which items are alike: what was learned of them but for the bias."""

    @classmethod
    def of(cls, model: Model, item_item_rank: int) -> VectorLayout:
        """The layout under these settings.

        Args:
            model: Its settings.
            item_item_rank: Width of the factors as they are: at most one dimension for each item.
        """
        item_item = Dimensions(model.dimension, model.dimension + item_item_rank)
        lift = Dimensions(item_item.stop, item_item.stop + 1)
        return cls(
            learned=Dimensions(0, model.dimension),
            item_item=item_item,
            lift=lift,
            discount=Dimensions(lift.stop, lift.stop + (1 if model.diversity else 0)),
            similarity=Dimensions(0, model.dimension - (0 if model.normalize else 1)),
        )

    @property
    def width(self) -> int:
        return self.discount.stop

    def to_json(self) -> dict[str, Any]:
        """Name of each slice → [start, stop], and `width`."""
        return {**{name: list(dimensions) for name, dimensions in asdict(self).items()}, "width": self.width}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> VectorLayout:
        """The reverse of `to_json`."""
        return cls(**{name: Dimensions(*value) for name, value in content.items() if name != "width"})
