"""Fingerprints of code: what TFX's cache key does not see, handed to the stages as a parameter."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("components", "modules")


def code(*names: str) -> str:
    """Hash of some modules' source and of all they import from this project, directly or not.

    Importing `a.b.c` runs `a/__init__.py`, `a/b/__init__.py` and `a/b/c.py`, so all three count, with what they import.

    Args:
        names: Dotted names of modules or packages, for instance `modules.trainer` or `components.pusher.executor`.

    Raises:
        ValueError: A name is no module of this project.
    """
    for name in names:
        if not _files(name, whole=True):
            raise ValueError(f"{name} is no module of {', '.join(_PACKAGES)}")
    digest = hashlib.sha256()
    for path in sorted({file for name in names for file in _closure(name)}):
        digest.update(str(path.relative_to(_ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _closure(name: str) -> set[Path]:
    files: set[Path] = set()
    open_names = [name]
    while open_names:
        for path in _files(open_names.pop()):
            if path not in files:
                files.add(path)
                open_names += _imports(path)
    return files


def _files(name: str, whole: bool = False) -> list[Path]:
    """The files that importing a dotted name runs, as far as they are this project's.

    Args:
        name: A module, a package, or a name inside one of them, of which the files of its parents remain.
        whole: Give nothing where the last part is not a module or package.
    """
    parts = name.split(".")
    if parts[0] not in _PACKAGES:
        return []
    files = []
    for length in range(1, len(parts) + 1):
        place = _ROOT.joinpath(*parts[:length])
        if place.is_dir():
            files += [init] if (init := place / "__init__.py").exists() else []
        elif place.with_suffix(".py").exists():
            return [] if whole and length < len(parts) else [*files, place.with_suffix(".py")]
        else:
            return [] if whole else files
    return files


def _imports(path: Path) -> tuple[str, ...]:
    """Dotted names that a file imports, relative ones resolved."""
    return _imported(path.read_text(encoding="utf-8"), path.relative_to(_ROOT).parent.parts)


# A pipeline asks for a dozen closures, which have most files in common; a text is parsed once.
@functools.cache
def _imported(source: str, package: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names that a text imports, relative ones resolved by the package that it is in."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the file's own package, each further one a parent's.
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            # What is imported may be a module of the package or a name inside of it.
            names.append(module)
            names += (f"{module}.{alias.name}" for alias in node.names)
    # Each name once, in the order of the text.
    return tuple(dict.fromkeys(names))
