"""What keeps a page from being written."""

from __future__ import annotations

import click


class PageError(click.ClickException):
    """A person's mistake, or a version that no page can be made for, in one line; this folder's own type of it."""
