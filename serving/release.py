"""Puts labels on versions, for canary and rollback: writes the model config file, or sends it to running servers.

    python -m serving.release --model movielens-100k --base-path /models/movielens-100k \\
        --label stable=1795402058 --label canary=1795409000 --write serving/models.config

    python -m serving.release … --label stable=1795409000 --keep 1795402058 --send localhost:8500

Clients that ask for `stable` do not notice a canary; those who ask for `canary` get the new version. The second command
promotes it and keeps the old version loaded: the way back is the same command with the two numbers exchanged, and takes
no load. Without labels the newest versions are served, whatever is pushed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.client import GrpcClient, ServingError

LOADED_VERSIONS = 2


def config(
    model: str, base_path: str, labels: dict[str, int], keep: Sequence[int] = ()
) -> model_server_config_pb2.ModelServerConfig:
    """A configuration that serves labelled and kept versions, or the newest ones when there are none.

    Args:
        model: The model's name in requests.
        base_path: Its folder as the server sees it.
        labels: Label → version.
        keep: Versions that stay loaded without a label, to go back to.
    """
    one = model_server_config_pb2.ModelConfig(
        name=model, base_path=base_path, model_platform="tensorflow", version_labels=labels
    )
    versions = sorted({*labels.values(), *keep})
    if versions:
        # Named one by one: a push of the night must not unload what a label is on.
        one.model_version_policy.specific.versions.extend(versions)
    else:
        one.model_version_policy.latest.num_versions = LOADED_VERSIONS
    return model_server_config_pb2.ModelServerConfig(model_config_list={"config": [one]})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="name in requests")
    parser.add_argument("--base-path", required=True, help="folder with the versions, as the server sees it")
    parser.add_argument("--label", action="append", default=[], type=_label, metavar="NAME=VERSION", dest="labels")
    parser.add_argument("--keep", action="append", default=[], type=int, metavar="VERSION", help="stays loaded as well")
    parser.add_argument("--write", metavar="FILE", help="the model config file (default: standard output)")
    parser.add_argument("--send", action="append", default=[], metavar="HOST:PORT", help="a server's gRPC address")
    options = parser.parse_args(arguments)
    made = config(options.model, options.base_path, dict(options.labels), options.keep)
    text = "# Written by python -m serving.release.\n" + text_format.MessageToString(made)
    for address in options.send:
        with GrpcClient(address, options.model, timeout=60.0) as client:
            try:
                client.reload(made)
            except ServingError as error:
                print(f"{address}: {error}", file=sys.stderr)
                return 1
    if options.write:
        # Renamed into place: a server that reads it now finds the old one or the new one, whole.
        partial = f"{options.write}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, options.write)
    elif not options.send:
        print(text, end="")
    return 0


def _label(text: str) -> tuple[str, int]:
    name, _, version = text.partition("=")
    if not name or not version.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VERSION, for instance stable=1795402058")
    return name, int(version)


if __name__ == "__main__":
    sys.exit(main())
