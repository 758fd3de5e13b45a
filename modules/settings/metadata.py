"""The section `metadata`: the ML Metadata store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from modules.settings.base import Line, Settings


class Metadata(Settings):
    """The ML Metadata store: SQLite under the output root, or a server."""

    kind: Literal["sqlite", "mysql", "postgresql"] = "sqlite"
    host: Line | None = None
    port: int | None = Field(None, ge=1, le=65_535)
    database: Line | None = None
    user: Line | None = None
    password_env: Line | None = None
    """Name of the environment variable that holds the password."""

    @model_validator(mode="after")
    def _complete(self) -> Metadata:
        if self.kind != "sqlite" and not (self.host and self.database and self.user):
            raise ValueError(f"{self.kind} needs host, database and user")
        return self
