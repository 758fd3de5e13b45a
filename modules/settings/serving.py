"""The section `serving`: what a request gets back."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from modules.settings.base import MANY, Answers, ColumnName, Distinct, Settings


class Serving(Settings):
    """What a request gets back (modules/servable)."""

    k: Answers = 100
    """Number of items in an answer."""
    exclude_history: bool = True
    """Never recommend an item of the request's own history. Off where coming back to an item is right, as to a song:
    training then learns repeats, and the gates count them (docs/model.md)."""
    return_columns: Distinct[ColumnName] = ()
    """Columns of the items table that come back beside each item, for instance its title."""
    filter_columns: Distinct[ColumnName] = ()
    """String columns of the items table that `recommend_filtered` can require values of."""
    known_users: int = Field(0, ge=0, le=MANY)
    """Users whose features and histories are inside the servable, at most: those with the newest interactions. They can
    be asked for by id alone, with `recommend_user`. 0 leaves the signature out. A user takes 4 bytes for each item of
    the history, of which the newest `max_length` are kept, and a few for each feature."""
    max_per_value: dict[ColumnName, Answers] = Field(default_factory=dict)
    """Column → m: a recommendation holds at most m items of each of its values. Columns of `filter_columns`; an item
    with several values counts for each, one without a value is not limited."""
    latency_p99_ms: float | None = Field(None, gt=0, le=1e9)
    """The ServableValidator refuses a servable whose single requests take longer; None measures without a limit."""

    @field_validator("max_per_value")
    @classmethod
    def _columns_with_filters(cls, most: dict[str, int], others: ValidationInfo) -> dict[str, int]:
        # Not there where it is itself a mistake.
        filtered = others.data.get("filter_columns")
        for column in most:
            if filtered is not None and column not in filtered:
                raise ValueError(f"{column!r} is not one of serving.filter_columns; add it to them")
        return most
