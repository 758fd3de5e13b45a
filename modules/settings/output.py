"""The section `output`: where artifacts, pushed versions and lineage events go."""

from __future__ import annotations

from pydantic import field_validator

from modules.settings.base import Line, Settings


class Output(Settings):
    root: Line = "runs"
    """Artifacts and, by default, the metadata store."""
    push: Line = "served"
    """The model is pushed to <push>/<name>/<version>."""
    openlineage: Line | None = None
    """Where a run's OpenLineage events go (docs/integrations.md): a file, which gets a line for each, or the URL of a
    server. None sends none."""

    @field_validator("openlineage")
    @classmethod
    def _a_file_or_a_server(cls, sink: str | None) -> str | None:
        scheme, separator, _ = (sink or "").partition("://")
        if separator and scheme not in ("http", "https"):
            raise ValueError(f"{sink!r} is neither a file on this machine nor an http(s) URL; name one of them")
        return sink
