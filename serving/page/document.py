"""The page as one file: markup, style, scripts and contents put together, and the policy that a browser holds it to."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.page.contents import as_json
from serving.page.errors import PageError

_FOLDER = Path(__file__).parent
_SCRIPTS = ("server.js", "controls.js", "request.js", "page.js")
# What may stand in a policy: an origin, and below it the path that a proxy has the server under.
_SERVER = re.compile(r"(?P<origin>(?:https?://[\w.-]+(?::[0-9]+)?)?)(?P<path>(?:/[\w.~-]+)*)/?", re.ASCII)
_OWN_ORIGIN = "'self'"


def check_server(server: str) -> str:
    """The address that a page asks, as it stands in the page.

    Args:
        server: `http://host:8501`, with a path where a proxy adds one, or such a path alone; "" for the page's own
            origin.

    Raises:
        PageError: It is something else.
    """
    match = _SERVER.fullmatch(server)
    if match is None:
        raise PageError(
            f"--server {server}: expected http://HOST:PORT, https://HOST/PATH, or /PATH on the host that has the page"
        )
    return match["origin"] + match["path"]


def render(contents: Mapping[str, Any], server: str = "", models: Sequence[str] = ()) -> bytes:
    """The page, UTF-8.

    Args:
        contents: Of one version.
        server: As `check_server` returns it.
        models: Names of all models that a page can be asked for here, at `?model=NAME`.
    """
    style, script = _read("page.css"), "".join(_read(name) for name in _SCRIPTS)
    parts = {
        "policy": _policy(style, script, server),
        "style": style,
        "script": script,
        "data": as_json({**contents, "server": server, "models": list(models)}),
    }
    # In one go: what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html")).encode()


def _policy(style: str, script: str, server: str) -> str:
    """Nothing runs but the page's own script, and nobody is asked but the server."""
    origin = _SERVER.fullmatch(server)
    assert origin is not None, server
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            f"connect-src {origin['origin'] or _OWN_ORIGIN}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
