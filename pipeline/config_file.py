"""A YAML text as a tree of mappings, lists and texts: what a number or a truth value is, only the field can say.

So `name: 2020-13-45`, `column: no` and `column: 007` are what is written there, and nothing is read as a date. A
mapping that has a key twice is refused, and what would take more memory or stack than any configuration does.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from modules.errors import UserError
from modules.nearest import meant

_BYTES = 2**18
_DEPTH = 32
# With what aliases repeat.
_NODES = 50_000
_NULL = "tag:yaml.org,2002:null"
_HALF_PAIR = re.compile("[\x00\ud800-\udfff]")


def read(path: str) -> dict[str, Any]:
    """The tree of a file.

    Raises:
        UserError: It cannot be read, is too large, is no UTF-8, no YAML or no mapping.
    """
    where = f"configuration {shown(path, 1000)}"
    try:
        with open(path, "rb") as file:
            content = file.read(_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UserError(f"{where}: {reason}; give an existing file with --config") from None
    if len(content) > _BYTES:
        raise UserError(f"{where}: larger than {_BYTES // 1024} KiB; is this the configuration?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}: line {line} is not UTF-8; save the file as UTF-8") from None
    tree = _parse(text, where)
    if not isinstance(tree, dict):
        raise UserError(f"{where}: expected keys and values at the top, such as `name: my-data`")
    return tree


def replace(tree: dict[str, Any], override: str) -> None:
    """Replaces a key of a tree in place.

    Args:
        tree: As `read` gives it.
        override: `key.path=value`, the value in YAML. A list's element goes by its number or its `column`
            (features.query.age.dimension=8).

    Raises:
        UserError: There is no such place, or the value is no YAML.
    """
    key, separator, text = override.partition("=")
    where = f"--set {shown(key)}"
    if not separator or not key:
        raise UserError(f"--set {shown(override)!r}: expected key.path=value, for instance training.epochs=3")
    if len(override) > _BYTES:
        raise UserError(f"{where}: the value is larger than {_BYTES // 1024} KiB")
    value = _parse(text, where)
    *parents, last = key.split(".")
    if len(parents) >= _DEPTH:
        raise UserError(f"{where}: deeper than {_DEPTH} keys")
    node: Any = tree
    for parent in parents:
        if isinstance(node, list):
            node = node[_position(node, parent, where)]
        elif isinstance(node, dict):
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        else:
            raise UserError(f"{where}: there are no keys below a single value")
    if isinstance(node, list):
        node[_position(node, last, where)] = value
    elif isinstance(node, dict):
        # Another split strategy has other keys: what the file says of the old one does not belong to the new one.
        if key == "split.strategy" and node.get("strategy") != value:
            node.clear()
        node[last] = value
    else:
        raise UserError(f"{where}: {shown(key.rpartition('.')[0])} is a single value and has no keys")


def shown(text: str, length: int = 200) -> str:
    """A text that came from outside as part of one line: whole if it can be printed and is short."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: length + 1])
    return escaped if len(escaped) <= length else escaped[: length - 1] + "…"


def _parse(text: str, where: str) -> Any:
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _plain(node)
    except _RefusedError as error:
        raise UserError(f"{where}: {error}") from None
    # The scanner reads numbers of directives and escapes with Python's int and chr.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: not YAML: {shown(' '.join(str(error).split()), 400)}") from None


class _RefusedError(Exception):
    """What YAML allows and a configuration does not; the message has the line."""


class _Loader(yaml.SafeLoader):
    """Composes nodes; scalars are texts, but for a plain null."""

    yaml_implicit_resolvers: dict[str, Any] = {
        first: [(tag, pattern) for tag, pattern in known if tag == _NULL]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0
        self._sizes: dict[int, int] = {}
        """Nodes below each finished node, by its identity."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Counts depth and nodes on the way, so that neither the stack nor what aliases multiply gets out of hand."""
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            node: Any = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _RefusedError(f"line {line}: *{shown(str(event.anchor))} is inside of what it stands for")
            self._add(self._sizes[id(node)], line)
            return node
        if event.tag not in (None, "!"):
            raise _RefusedError(f"line {line}: tags such as {shown(event.tag)} are not read; remove it")
        if self._depth == _DEPTH:
            raise _RefusedError(f"line {line}: nested deeper than {_DEPTH} levels")
        before = self._count
        self._add(1, line)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._count - before
        if isinstance(node, yaml.ScalarNode) and _HALF_PAIR.search(node.value):
            raise _RefusedError(f"line {line}: a text with a character that no file can hold (NUL or half a pair)")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        return node

    def _add(self, count: int, line: int) -> None:
        self._count += count
        if self._count > _NODES:
            raise _RefusedError(f"line {line}: more than {_NODES:,} values")


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag == _NULL:
            raise _RefusedError(f"line {line}: a key must be a word")
        if key.value in lines:
            raise _RefusedError(
                f"line {line}: key {shown(key.value)!r} is there twice, first in line {lines[key.value]}; remove one"
            )
        lines[key.value] = line


def _plain(node: yaml.Node) -> Any:
    """A node as Python has it; what an alias stands for anew each time, so that replacing a key changes one place."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value) for value in node.value]
    return None if node.tag == _NULL else node.value


def _position(node: list[Any], key: str, where: str) -> int:
    for position, element in enumerate(node):
        if isinstance(element, dict) and element.get("column") == key:
            return position
    if re.fullmatch("[0-9]{1,6}", key) and int(key) < len(node):
        return int(key)
    columns = [str(element["column"]) for element in node if isinstance(element, dict) and "column" in element]
    raise UserError(f"{where}: the list has no element {shown(key)!r}{meant(key, columns)}")
