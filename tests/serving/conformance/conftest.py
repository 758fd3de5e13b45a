"""The server under test: one that the command line names, else the development server over the small world's model.

    pytest tests/serving/conformance --serving-address HOST:8500 --serving-rest-address HOST:8501 --model-name NAME
        [--serving-base-path FOLDER] [--serving-remote-base-path FOLDER]

Everything that is asked is derived from what the server says of its model. Tests that push versions or move labels need
the model's folder (`--serving-base-path`, with a name of its own if the server sees it under another path), change it,
and put it back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Pushing, Target, development_server, eventually, look_at, newest

MODEL = "small-world"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--serving-address", help="host:port of the gRPC service of a TF Serving")
    parser.addoption("--serving-rest-address", help="host:port of its REST service")
    parser.addoption("--model-name", help="the model's name there")
    parser.addoption("--serving-base-path", help="the model's folder, for tests that push versions")
    parser.addoption("--serving-remote-base-path", help="the same folder as the server sees it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "serving/conformance" in str(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    address = request.config.getoption("--serving-address", None)
    if address is not None:
        rest, model = (request.config.getoption(o) for o in ("--serving-rest-address", "--model-name"))
        if not rest or not model:
            raise pytest.UsageError("--serving-address needs --serving-rest-address and --model-name")
        base_path = request.config.getoption("--serving-base-path")
        remote = request.config.getoption("--serving-remote-base-path") or base_path or ""
        yield look_at(address, rest, model, Path(base_path) if base_path else None, remote)
        return
    small = request.getfixturevalue("small")
    base_path = tmp_path_factory.mktemp("conformance") / MODEL
    shutil.copytree(small.outcome.answer["pushed"], base_path / "1")
    with development_server("--model-name", MODEL, "--model-base-path", str(base_path)) as running:
        yield look_at(running.grpc, running.rest, MODEL, base_path, str(base_path))


@pytest.fixture
def pushing(target: Target) -> Iterator[Pushing]:
    """The model's folder, with a way to push into it; what was pushed is gone after the test."""
    if target.base_path is None:
        pytest.skip("the server is somewhere else: --serving-base-path says where versions can be pushed")
    pushing = Pushing(target.base_path)
    yield pushing
    pushing.withdraw()
    eventually(lambda: newest(target) == pushing.first)
