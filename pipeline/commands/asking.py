"""What the commands that ask the pushed model share: the model itself, and a table of its answer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pipeline import local_runner, terminal
from pipeline.commands.options import Common
from pipeline.config import Config


def recommender(config: Config, now: int | None = None) -> Any:
    """The newest pushed version.

    Args:
        config: The configuration that it was made with.
        now: Time of requests that name none, in seconds since 1970.
    """
    from pipeline.recommender import Recommender

    return Recommender(config, now)


def load(model: Any) -> None:
    """Loads what `recommender` has found; before that comes what can be said without waiting for TensorFlow."""
    # What TensorFlow writes while it loads a model is of no use to who asks for recommendations.
    with local_runner.captured_output(os.devnull):
        model.load()


def show(common: Common, answer: Sequence[Any], version: int, note: str = "", explanations: Sequence[Any] = ()) -> int:
    """Writes an answer, best item first, and under each item its explanation where there is one."""
    if common.json:
        items = [r.as_dict() for r in answer]
        for item, explanation in zip(items, explanations, strict=False):
            item["explanation"] = explanation.as_dict()
        common.answer({"model_version": version, "items": items, "note": note})
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, side in (("rank", "right"), ("item", "left"), ("title", "left"), ("score", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for r, explanation in itertools.zip_longest(answer, explanations):
        table.add_row(str(r.rank), r.item_id, r.title, f"{r.score:.3f}")
        for line in explanation.lines() if explanation else ():
            table.add_row("", *line)
    console = terminal.console()
    console.print(table)
    console.print(f"model version {version}{'; ' if note else ''}{note}")
    return 0
