"""The encoding `bucketized`: numbers in ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from modules.encodings.base import Embedded, Encoded
from modules.settings.base import Boundaries

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from modules.encodings.items import ItemIds


class Bucketized(Embedded):
    """A number in buckets, each with an embedding. Encodes to int64 [B]: 0 missing, then 1 … number of buckets."""

    encoding: Literal["bucketized"] = "bucketized"
    dtype: ClassVar[Literal["string", "float32", "int64"]] = "float32"
    boundaries: Boundaries | None = None
    """Rising; a value equal to a boundary belongs to the bucket above it. Either these or `buckets`."""
    buckets: int | None = Field(None, ge=2, le=10_000)
    """Number of quantile buckets, with boundaries learned from the training period."""

    @model_validator(mode="after")
    def _one_of(self) -> Bucketized:
        if (self.boundaries is None) == (self.buckets is None):
            raise ValueError("give either boundaries or buckets")
        return self

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded()}

    def learn(self, values: tf.Tensor, items: ItemIds) -> Any:
        from modules.encodings.values import quantiles

        return self.boundaries if self.buckets is None else quantiles(values, self.buckets)

    def encode(self, values: tf.Tensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        from modules.encodings.values import bucket

        return (bucket(values, learned),)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return 1 + (self.buckets if self.buckets is not None else len(self.boundaries or ()) + 1)
