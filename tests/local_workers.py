"""TF_CONFIG of workers that are processes of this machine."""

from __future__ import annotations

import json
import socket


def tf_configs(count: int) -> list[str]:
    """One for each of so many workers, on ports that nobody has."""
    servers = [socket.create_server(("localhost", 0)) for _ in range(count)]
    workers = [f"localhost:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": number}})
        for number in range(count)
    ]
