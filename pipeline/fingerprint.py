"""Fingerprints of code: what TFX's cache key does not see, handed to the stages as a parameter."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("components", "modules")


def code(*names: str) -> str:
    """Hash of some modules' source and of all they import from this project, directly or not.

    Args:
        names: Dotted names, for instance `modules.trainer` or `components.pusher.executor`.
    """
    digest = hashlib.sha256()
    for path in sorted({file for name in names for file in _closure(name)}):
        digest.update(str(path.relative_to(_ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _closure(name: str) -> set[Path]:
    found: set[Path] = set()
    open_names = [name]
    while open_names:
        path = _file(open_names.pop())
        if path is not None and path not in found:
            found.add(path)
            open_names += _imports(path)
    return found


def _file(name: str) -> Path | None:
    """The file of a module of this project; None for a package, a name inside a module, or somebody else's module."""
    if name.partition(".")[0] not in _PACKAGES:
        return None
    path = _ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.exists() else None


def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)
