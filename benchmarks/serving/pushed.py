"""Which version folder is measured: the newest that runs of a configuration have pushed."""

from __future__ import annotations

import sys
from pathlib import Path


def newest_version(config: str, base_path: Path | None = None) -> Path:
    """The newest version folder; ends the program in one line where there is none.

    Args:
        config: Configuration file whose runs push.
        base_path: Looked into instead of where they push.
    """
    base_path = base_path or _push_destination(config)
    versions = [f for f in base_path.glob("*") if f.name.isdigit()] if base_path.is_dir() else []
    if not versions:
        sys.exit(f"no model in {base_path}: push one with `twotower run`, or name another folder")
    return max(versions, key=lambda folder: int(folder.name))


def _push_destination(config: str) -> Path:
    from pipeline.config import load

    return Path(load(config).push_destination)
