"""`make bench-ablations`: what each part of the towers and their training is worth, on validation rows.

Reads what `make bench-quality ARGS="--systems ours"` has left: the transformed examples of its runs. Every row is a
fit of the shipped configuration with one part taken away, stopped early and judged by the validation part that the
benchmark carved from train. Test rows take no part.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modules.errors import UserError
from pipeline import local_runner
from pipeline.config import load

# Settings that take a part away; `features` names the encoding of query features that are left out.
PARTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "no item-item model": {"model.item_item_rank": 0},
    "no recent popularity lift": {"model.popularity_lift": False},
    "the history's age not told": {"features": "history_age"},
    "whole histories masked alike": {"training.locality": 0.0},
    "locality 1": {"training.locality": 1.0},
    "the Tuner's winner": {"training.locality": 1.0, "training.learning_rate": 1e-3},
    "next_item instead of masked_items": {"training.objective": "next_item"},
    "in-batch softmax with logQ": {"training.negatives": "in_batch"},
    "the last weights instead of their average": {"training.averaging": 0.0},
    "no weight decay": {"training.weight_decay": 0.0},
    "mask rate 0.05": {"model.mask_rate": 0.05},
    "no query-feature dropout": {"model.query_feature_dropout": 0.0},
    "64 learned dimensions": {"model.dimension": 64},
    "cosine with temperature 0.1": {"model.normalize": True, "training.temperature": 0.1},
    "a dense layer on the query": {"model.query_layers": (256,)},
    "interactions count alike": {"training.user_exponent": 1.0},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-ablations", description=__doc__)
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--protocols", default="random,leave-last-out,temporal")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, as the table names them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("results/quality"), help="the output of bench-quality")
    options = parser.parse_args(arguments)
    try:
        names = options.protocols.split(",")
        parts = options.parts.split(",")
        if unknown := sorted(set(parts) - set(PARTS)):
            raise UserError(f"--parts: unknown {unknown[0]!r}; known are {', '.join(PARTS)}")
        local_runner.quiet_libraries()
        fits = {name: _read(options, name) for name in names}
    except UserError as error:
        print(f"bench-ablations: {error}", file=sys.stderr)
        return 2
    from modules.training.loop import fit

    print("| part | " + " | ".join(f"{name}: NDCG@10 | recall@10" for name in names) + " |")
    print("| --- |" + " --- | --- |" * len(names), flush=True)
    results: dict[str, Any] = {}
    for part in parts:
        cells = []
        for name, (specification, sequences, queries) in fits.items():
            figures = []
            for seed in range(1, options.seeds + 1):
                report = fit(_without(specification, PARTS[part], seed), sequences, queries).report
                figures.append((report.ndcg, report.recall))
            ndcg, recall = np.mean(figures, axis=0)
            results.setdefault(part, {})[name] = figures
            cells.append(f"{ndcg:.4f} | {recall:.4f}")
        print(f"| {part} | " + " | ".join(cells) + " |", flush=True)
    (options.results / "ablations.json").write_text(json.dumps(results, indent=1))
    return 0


def _without(specification: Any, part: dict[str, Any], seed: int) -> Any:
    """The specification with one part taken away."""
    settings = {**part, "training.seed": seed, "training.refit": False}
    dropped = settings.pop("features", None)
    query = tuple(f for f in specification.features.query if f.encoding != dropped)
    features = specification.features.model_copy(update={"query": query})
    return replace(specification.with_settings(settings), features=features)


def _read(options: argparse.Namespace, protocol: str) -> Any:
    """Specification, train split and validation queries of the last run on one protocol."""
    import tensorflow_transform as tft

    from modules.encodings.features import Columns
    from modules.training.dataset import read_queries, read_specification
    from modules.training.stream import read_train
    from pipeline import runs

    root = options.results.resolve() / protocol / "ours" / "runs"
    config = load(options.config, [f"output.root={root}"])
    newest = runs.read_runs(config, last=1) if root.exists() else []
    transform = newest[0].stage("Transform") if newest else None
    examples = transform.output("transformed_examples") if transform else None
    graph = transform.output("transform_graph") if transform else None
    if examples is None or graph is None:
        raise UserError(f"there is no run on {protocol} in {options.results}; `make bench-quality` makes it")
    names = config.tables.interactions
    files = {split: [os.path.join(examples.uri, f"Split-{split}", "*")] for split in ("train", "validation")}
    columns = Columns(user=names.user, item=names.item, timestamp=names.timestamp)
    output = tft.TFTransformOutput(graph.uri)
    of_fit = {"features": config.features, "columns": columns, "model": config.model, "training": config.training}
    settings = {key: value.model_dump_json() for key, value in of_fit.items()}
    specification = read_specification(settings, files["train"], output)
    train = read_train(files["train"], specification, output)
    return specification, train, read_queries(files["validation"], specification, output)


if __name__ == "__main__":
    sys.exit(main())
