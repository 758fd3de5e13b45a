"""Settings that must hold before TensorFlow is imported, and fixtures that several folders share."""

from __future__ import annotations

import functools
import gc
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_runs import Small
    from faulty_runs import Starter
    from known_towers import World
    from playwright.sync_api import Browser

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As `twotower` sets it: a fit in this process and one in a process that a test starts must add in the same order.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

ROOT = Path(__file__).parent.parent
SMALL = "small"
# Longest first, so that of two processes none is left with a long one at the end.
LONGEST = (SMALL, "tests/benchmarks/test_leaks.py", "tests/e2e/test_movielens.py")


@functools.cache
def group(file: str) -> str:
    """What one process tests: a file, or all that look at the same trained pipeline, so that it is trained once."""
    source = (ROOT / file).read_text(encoding="utf-8")
    takes_it = re.search(r"^from e2e_runs import .*\bSmall\b", source, re.MULTILINE)
    return SMALL if takes_it or file.startswith("tests/serving/conformance/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(super()._split_scope(nodeid))

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole pipelines first."""

    def place(item: pytest.Item) -> tuple[int, bool]:
        name = group(item.nodeid.partition("::")[0])
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), "e2e" not in item.path.parts

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is imported by now is never garbage: each full collection would go through all of TensorFlow and TFX."""
    gc.collect()
    gc.freeze()
    # What tests leave behind is large, and a twelfth of their time went into looking through it again and again.
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """One trained pipeline for all tests that only look at it, or change a setting of it."""
    # Imports ML Metadata, which the fast tests need not wait for.
    import world
    from e2e_runs import Small, twotower

    folder = tmp_path_factory.mktemp("small")
    world.write_parquet(folder)
    path = world.write_config(folder)
    outcome = twotower("run", "--config", path, "--set", f"output.openlineage={folder / 'lineage.jsonl'}")
    assert outcome.code == 0, outcome.errors
    return Small(folder, path, outcome)


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Runs in processes of their own, which need not import TFX again."""
    from faulty_runs import Starter

    starter = Starter()
    yield starter
    starter.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; a test opens pages by `page` of tests/browser.py."""
    from browser import chromium

    with chromium() as started:
        yield started


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
