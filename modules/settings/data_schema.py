"""The section `schema`: the curated data schema."""

from __future__ import annotations

from modules.settings.base import Line, Settings


class Schema(Settings):
    path: Line | None = None
    """A curated schema.pbtxt; without one the schema is inferred from the training data of each run."""
