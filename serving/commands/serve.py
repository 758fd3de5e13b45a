"""`twotower serve`: the development server."""

from __future__ import annotations

import json
from typing import Any

import click

from serving.development_server.limits import Limits, options
from serving.page.bounds import Bounds
from serving.page.bounds import options as page_options


@click.command(
    epilog="""
    twotower serve
    twotower serve --model-config-file serving/models.config --host 0.0.0.0
    twotower serve --grpc-port 0 --rest-port 0 --json
    """
)
@click.option("--model-name", metavar="NAME", help="name in requests (default: the configuration's)")
@click.option("--model-base-path", metavar="FOLDER", help="folder with the versions (default: where runs push)")
@click.option("--model-config-file", metavar="F", help="TF Serving's: models, version policies and labels")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--grpc-port", type=int, default=8500, show_default=True, help="0 takes a free one")
@click.option("--rest-port", type=int, default=8501, show_default=True, help="0 takes a free one")
@click.option("--rest-api-enable-cors-support", is_flag=True, help="TF Serving's: pages of other origins may ask")
@click.option("--page/--no-page", "has_page", default=True, help="a page to try the model, at / of the REST port")
@page_options("page-")
@options
@click.option("--config", "path", help="configuration file, for name and folder (default: that of `twotower run`)")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="replace a key of the configuration")
@click.option("--json", "as_json", is_flag=True, help="machine-readable output")
@click.pass_obj
def serve(
    project: Any,
    model_name: str | None,
    model_base_path: str | None,
    model_config_file: str | None,
    host: str,
    grpc_port: int,
    rest_port: int,
    rest_api_enable_cors_support: bool,
    has_page: bool,
    page_items: int,
    page_users: int,
    path: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **limits: int,
) -> int:
    """Development server: the pushed model over TF Serving's gRPC and REST interface, and a page to try it."""
    name, base_path = model_name, model_base_path
    if not model_config_file and not (name and base_path):
        # The pipeline's configuration, which this folder knows nothing of.
        config = project.load(path, overrides)
        name, base_path = name or config.name, base_path or config.push_destination
    from serving.development_server import server

    def announce(running: server.Server) -> None:
        if as_json:
            print(json.dumps({"grpc": running.grpc_address, "rest": running.rest_address}), flush=True)
        else:
            what = model_config_file or f"{name} from {base_path}"
            where = f"gRPC {running.grpc_address}, REST {running.rest_address}"
            where += f", page http://{running.rest_address}/" if has_page else ""
            project.say(f"development server: {what}; {where}")

    server.serve(
        server.Options(
            model_name=name or "",
            model_base_path=base_path or "",
            model_config_file=model_config_file or "",
            host=host,
            grpc_port=grpc_port,
            rest_port=rest_port,
            limits=Limits(**limits),
            page=Bounds(page_items, page_users) if has_page else None,
            enable_cors_support=rest_api_enable_cors_support,
        ),
        announce,
    )
    return 0
