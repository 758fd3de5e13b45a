"""The systems that are compared, by name; only a worker, in the environment named here, imports their modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.quality.protocols import PROTOCOLS

_WARM = ("random", "leave-last-out", "temporal")
_BY_HISTORY = (*_WARM, "cold-users")


@dataclass(frozen=True)
class Entry:
    """Where a system is, and what it can be asked."""

    title: str
    implementation: str
    """`module:class`, below benchmarks.quality.systems."""
    environment: Literal[".venv", ".venv-bench"] = ".venv"
    protocols: tuple[str, ...] = _WARM
    seeded: bool = True
    """Whether another seed gives another model."""
    budgets: int = 1
    """How many times the budget of tuning it is given: one fit of a transformer takes as long as others' searches."""


SYSTEMS = {
    "ours": Entry("two-tower (ours)", "ours:", protocols=PROTOCOLS),
    "sasrec": Entry("SASRec (RecTools)", "sasrec:SASRec", ".venv-bench", protocols=_BY_HISTORY, budgets=5),
    "als": Entry("ALS (implicit)", "factors:Als", ".venv-bench", protocols=_BY_HISTORY),
    "bpr": Entry("BPR (implicit)", "factors:Bpr", ".venv-bench"),
    "lightfm": Entry("LightFM, WARP", "factors:LightFm", ".venv-bench"),
    "ease-recency": Entry("EASE, recency-weighted history", "linear:RecencyEase", protocols=_BY_HISTORY, seeded=False),
    "ease": Entry("EASE", "linear:Ease", protocols=_BY_HISTORY, seeded=False),
    "item-knn": Entry(
        "item-kNN, BM25 (implicit)", "linear:ItemKnn", ".venv-bench", protocols=_BY_HISTORY, seeded=False
    ),
    "content-knn": Entry("item-kNN on content, TF-IDF", "linear:ContentKnn", protocols=("cold-items",), seeded=False),
    "popular": Entry("most popular", "popular:Popular", protocols=PROTOCOLS, seeded=False),
    "popular-recent": Entry("most popular, recent window", "popular:Recent", protocols=_BY_HISTORY, seeded=False),
    "tfrs-tutorial-best": Entry("TFRS tutorial, best epoch", "tfrs_tutorial:Best"),
    "tfrs-tutorial": Entry("TFRS tutorial, 3 epochs", "tfrs_tutorial:Tutorial"),
    "random": Entry("random", "popular:Random", protocols=("cold-items",)),
}
