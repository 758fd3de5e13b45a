"""What the worker image has, installed once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import beam_processes
import pytest


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean prefix."""
    return beam_processes.worker_image(tmp_path_factory.mktemp("image"))
