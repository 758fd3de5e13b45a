"""Settings that must hold before TensorFlow is imported, and fixtures that several folders share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_runs import Small
    from faulty_runs import Starter
    from known_towers import World

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As `twotower` sets it: a fit in this process and one in a process that a test starts must add in the same order.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole pipelines first: of two processes none is left with a long file at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts and item.path.name != "test_leaks.py")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """One trained pipeline for all tests that only look at it, or change a setting of it."""
    # Imports ML Metadata, which the fast tests need not wait for.
    import world
    from e2e_runs import Small, twotower

    folder = tmp_path_factory.mktemp("small")
    world.write_parquet(folder)
    path = world.write_config(folder)
    outcome = twotower("run", "--config", path)
    assert outcome.code == 0, outcome.errors
    return Small(folder, path, outcome)


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Runs in processes of their own, which need not import TFX again."""
    from faulty_runs import Starter

    starter = Starter()
    yield starter
    starter.stop()


@pytest.fixture(params=["local", "remote"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A push destination: a folder, and one of a file system that only TensorFlow knows."""
    if request.param == "local":
        return str(tmp_path / "served")
    return f"ram://{tmp_path.name}/served"


@pytest.fixture(scope="session")
def known_world() -> World:
    """150 items whose vectors numpy knows."""
    from known_towers import World

    return World(150)


@pytest.fixture(scope="session")
def known_embedding(known_world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedding model of `known_world`."""
    return known_world.save_embedding(tmp_path_factory.mktemp("embedding") / "model")
