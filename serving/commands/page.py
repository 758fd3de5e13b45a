"""`twotower page`: a page to try the model, as a file to lie beside a TF Serving."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from serving.page.bounds import Bounds, options
from serving.page.errors import PageError


@click.command(
    epilog="""
    twotower page --output page.html
    twotower page --output page.html --server http://localhost:8501
    """
)
@click.option("--output", required=True, metavar="F.html", help="the file to write")
@click.option(
    "--server", default="", metavar="URL",
    help="TF Serving's REST address, http://HOST:8501, or a /PATH on the page's own host (default: that host)",
)  # fmt: skip
@click.option("--model-name", metavar="NAME", help="name in requests (default: the configuration's)")
@click.option("--model-base-path", metavar="FOLDER", help="folder with the versions (default: where runs push)")
@options()
@click.option("--config", "path", help="configuration file, for name and folder (default: that of `twotower run`)")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="replace a key of the configuration")
@click.option("--json", "as_json", is_flag=True, help="machine-readable output")
@click.pass_obj
def page(
    project: Any,
    output: str,
    server: str,
    model_name: str | None,
    model_base_path: str | None,
    items: int,
    users: int,
    path: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """A page to try the newest pushed version, as one file for a browser."""
    from serving.page import contents, document

    name, base_path = model_name, model_base_path
    if not (name and base_path):
        # The pipeline's configuration, which this folder knows nothing of.
        config = project.load(path, overrides)
        name, base_path = name or config.name, base_path or config.push_destination
    address = document.check_server(server)
    folder = contents.newest(base_path)
    held = contents.contents(folder, name, Bounds(items, users))
    rendered = document.render(held, address)
    _write(output, rendered)
    said = {
        "page": output,
        "version": held["version"],
        "items": len(held["items"]["id"]),
        "users": len(held["users"]["id"]),
        "bytes": len(rendered),
    }
    if as_json:
        print(json.dumps(said))
    else:
        project.say(
            f"{output}: {name}, version {said['version']}, {said['items']:,} titles, "
            f"histories of {said['users']:,} users, {len(rendered) / 1e6:.1f} MB"
        )
    return 0


def _write(output: str, content: bytes) -> None:
    # Renamed into place: who opens it now gets the old page or the new one, whole.
    partial = f"{output}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(content)
        os.replace(partial, output)
    except OSError as error:
        raise PageError(f"--output {output}: cannot be written: {error.strerror}") from None
