"""The types of what TFX calls an executor's `Do` with."""

from __future__ import annotations

from typing import Any

from tfx import types

Artifacts = dict[str, list[types.Artifact]]
"""Key of a channel → its artifacts."""
Properties = dict[str, Any]
"""Execution parameter → its value."""
