"""What a shell offers for a word that is being typed. Whatever goes wrong, it offers nothing.

No library that takes seconds is imported, and no server is asked.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from modules import push_destination
from pipeline import config_file, keys
from pipeline.config import Config, load

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_RUNS = 50


def _offer(words: Callable[[click.Context, str], Iterable[str]]) -> Complete:
    @functools.wraps(words)
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(word) for word in words(ctx, incomplete) if word.startswith(incomplete)]
        except Exception:  # whatever it is, a person in the middle of a line cannot use it
            return []

    return complete


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shell's own files and folders."""
    return [CompletionItem(incomplete, type="file")]


@_offer
def run_ids(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """Runs, newest first. Those of a database server are not asked for."""
    config = _config(ctx)
    path = os.path.join(config.root, "metadata.sqlite")
    if config.metadata.kind != "sqlite" or not os.path.exists(path):
        return ["last"]
    with sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=ro", uri=True, timeout=0.2) as database:
        found = database.execute(
            "SELECT run.name FROM Context AS run JOIN ParentContext ON run.id = context_id "
            "JOIN Context AS pipeline ON pipeline.id = parent_context_id "
            "WHERE pipeline.name = ? ORDER BY run.id DESC LIMIT ?",
            (config.name, _RUNS),
        ).fetchall()
    database.close()
    return ["last", *(name for (name,) in found)]


@_offer
def versions(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """What lies in a local push destination, newest first."""
    base = _config(ctx).push_destination
    return [] if push_destination.is_remote(base) else [str(v) for v in reversed(push_destination.versions(base))]


@_offer
def overrides(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """Keys for `--set`; behind the `=` the words that the key can be."""
    known = keys.written(Config, config_file.read(ctx.params["path"]))
    key, separator, _ = incomplete.partition("=")
    return [f"{key}={word}" for word in known.get(key, ())] if separator else [f"{key}=" for key in known]


@_offer
def filters(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """Columns for `--filter`."""
    return [f"{column}=" for column in _config(ctx).serving.filter_columns]


@_offer
def features(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """Columns for `--feature`: neither the user's id nor the history, which have options of their own."""
    config = _config(ctx)
    own = {config.tables.interactions.user, config.features.history.column if config.features.history else None}
    return [f"{feature.column}=" for feature in config.features.query if feature.column not in own]


def _config(ctx: click.Context) -> Config:
    return load(ctx.params["path"], ctx.params["overrides"])
