"""How settings travel from the compiled pipeline to a stage: what on the way changes them, and how much of them fits.

The API server writes a pipeline into an Argo workflow, whose driver hands each stage's parameters to the stage's pod as
arguments (read at kubeflow/pipelines 7b70c7b and argo-workflows 4.0.8):

- Kubernetes replaces `$$` and `$(NAME)` in arguments, Argo and the launcher replace `{{…}}`.
- The driver of the root DAG gets *all* stages' parameters as one argument, and Linux takes 128 KiB for one.

So a long text, or one that would be changed, travels compressed. Every stage still gets what it reads and nothing else,
and is cached by just that: what several stages read costs a few bytes each time.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
import zlib
from collections.abc import Mapping
from typing import Any

LONGEST_ARGUMENT = 128 * 1024
"""Bytes; Linux refuses a longer single argument or environment variable (MAX_ARG_STRLEN)."""

_PACKED = "zlib:"
_FILE = "data:"
# Shorter ones stay as they are, to be read in the user interface.
_READABLE = 512
_CHANGED = re.compile(r"\$[$(]|\{\{|\}\}")
# The rest of the root driver's template: its image, its other arguments, names and resources (2 KiB).
_REST_OF_TEMPLATE = 4 * 1024


def packed(text: str) -> str:
    """The text as it travels: compressed when it is long, or when it would not arrive as it is."""
    if len(text) <= _READABLE and not is_changed(text) and not text.startswith(_PACKED):
        return text
    return _PACKED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(text: str) -> str:
    """What `packed` was given."""
    if not text.startswith(_PACKED):
        return text
    return zlib.decompress(base64.b64decode(text.removeprefix(_PACKED))).decode()


def is_changed(text: str) -> bool:
    """Whether Kubernetes, Argo or the launcher would put something else in its place."""
    return _CHANGED.search(text) is not None


def file_as_text(content: bytes) -> str:
    """A file as a `data:` URI (RFC 2397). Not base64, in which `packed` would find nothing that repeats."""
    return f"{_FILE}text/plain," + urllib.parse.quote(content)


def text_as_file(text: str) -> bytes | None:
    """The content of a `data:` URI; None for any other text."""
    return urllib.parse.unquote_to_bytes(text.partition(",")[2]) if text.startswith(_FILE) else None


def argument(text: str) -> str:
    """An argument of a container such that Kubernetes makes `text` of it."""
    return text if text == "{{$}}" else text.replace("$", "$$")


def root_driver_bytes(spec: Mapping[str, Any], parameter_values: Mapping[str, Any], pipeline_root: str) -> int:
    """How much of `LONGEST_ARGUMENT` the root driver's pod needs for one run of a pipeline.

    Its longest argument is the root component; the template that Argo puts beside it, in an environment variable, holds
    that argument and the runtime configuration as JSON once more, which is longer.

    Args:
        spec: The PipelineSpec, as its JSON.
        parameter_values: The run's parameters.
        pipeline_root: The run's pipeline root.
    """
    tasks = {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        artifacts = task.get("inputs", {}).get("artifacts", {}).values()
        producers = {source["taskOutputArtifact"]["producerTask"] for source in artifacts}
        # Argo's compiler adds them (argocompiler/dag.go, addImplicitDependencies).
        tasks[name] = {**task, "dependentTasks": sorted({*task.get("dependentTasks", ()), *producers})}
    root = {**spec["root"], "dag": {**spec["root"]["dag"], "tasks": tasks}}
    runtime = {"gcsOutputDirectory": pipeline_root, "parameterValues": dict(parameter_values)}
    return sum(len(_json(_json(part)).encode()) for part in (root, runtime)) + _REST_OF_TEMPLATE


def _json(tree: Any) -> str:
    """As Go writes it: without spaces, and with what HTML knows escaped."""
    text = json.dumps(tree, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
