"""Beam as a run has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modules import beam_signatures


@pytest.fixture(scope="session", autouse=True)
def signatures_kept() -> Iterator[None]:
    with beam_signatures.kept():
        yield
