"""The page at `/`, for each model the one of its newest version, made when somebody asks for it."""

from __future__ import annotations

import threading
from urllib.parse import parse_qs

import grpc
from tensorflow_serving.apis import model_pb2

from serving.development_server.errors import ServingError
from serving.development_server.models import Models
from serving.page import contents, document
from serving.page.bounds import Bounds
from serving.page.errors import PageError

PAGE_PATH = "/"
# Beside the policy that is in the page itself, where a browser would not take this one.
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Pages:
    """Pages by model.

    Args:
        models: What is served.
        bounds: Of what goes into a page.
    """

    def __init__(self, models: Models, bounds: Bounds) -> None:
        self._models = models
        self._bounds = bounds
        self._making = threading.Lock()
        # Model → the version's folder, the names of all models, and the page.
        self._made: dict[str, tuple[tuple[str, list[str]], bytes]] = {}

    def page(self, query: str) -> bytes:
        """The page, UTF-8.

        Args:
            query: Of the URL; `model=NAME` asks for another model than the first.

        Raises:
            ServingError: The model is not served, or there is no page for its newest version.
        """
        names = self._models.names()
        name = (parse_qs(query).get("model") or [*names, ""])[0]
        with self._models.servable(model_pb2.ModelSpec(name=name)) as (_, servable):
            folder = servable.path
        with self._making:
            made_for = (folder, names)
            before, page = self._made.get(name, (None, b""))
            if before != made_for:
                try:
                    page = document.render(contents.contents(folder, name, self._bounds), models=names)
                except PageError as error:
                    raise ServingError(grpc.StatusCode.NOT_FOUND, error.message) from None
                self._made[name] = (made_for, page)
        return page
