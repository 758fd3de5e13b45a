"""Chromium without a window, driven by Playwright: what a person sees of a page."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str:
    """The Chromium or Chrome of this machine. Skips the test where there is none, but never in CI."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"no browser on this machine: none of {', '.join(_NAMES)}")
    assert found, f"CI has to have a browser: none of {', '.join(_NAMES)}"
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for as long as the context is entered."""
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as CI is, has no sandbox; /dev/shm is small in containers.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextlib.contextmanager
def page(
    browser: Browser, width: int = 1280, height: int = 900, dark: bool = False, expected: str = ""
) -> Iterator[Page]:
    """A page of a given size in CSS pixels. A script that fails, or says so in the console, fails the test.

    Args:
        browser: Chromium.
        width: Of what is seen.
        height: Of what is seen.
        dark: Whether the person prefers dark colours.
        expected: A regular expression of what the console may say, as the test makes it happen.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    yield opened
    context.close()
    wrong = [text for text in wrong if not (expected and re.search(expected, text))]
    assert not wrong, wrong
