"""The section `output`: where artifacts and pushed versions go."""

from __future__ import annotations

from modules.settings.base import Line, Settings


class Output(Settings):
    root: Line = "runs"
    """Artifacts and, by default, the metadata store."""
    push: Line = "served"
    """The model is pushed to <push>/<name>/<version>."""
