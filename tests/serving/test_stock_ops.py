"""A pushed servable of the stock layer needs nothing but TensorFlow: every op of every function, and an answer.

The checks run in a process that imports TensorFlow and nothing else, as the unmodified TF Serving image has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from e2e_runs import Small
from known_towers import SERVING, World, save_servable

from modules.retrieval.scann import Scann, train_scann
from modules.retrieval.top_k import SearchParameters
from modules.retrieval.tree import Tree
from modules.servable.contract import read_servable
from serving.development_server import servable as served
from serving.development_server.metrics import Metrics

pytestmark = pytest.mark.slow


_CHECK = """
    import json, sys
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    for path, item in zip(sys.argv[1::2], sys.argv[2::2]):
        saved = saved_model_pb2.SavedModel.FromString(open(f"{path}/saved_model.pb", "rb").read())
        used, functions = set(), set()
        for meta_graph in saved.meta_graphs:
            library = meta_graph.graph_def.library.function
            functions |= {function.signature.name for function in library}
            used |= {node.op for node in meta_graph.graph_def.node}
            used |= {node.op for function in library for node in function.node_def}
        unknown = sorted(op for op in used - functions if op_def_registry.get(op) is None)
        items, failure = [], ""
        try:
            model = tf.saved_model.load(path)
            answer = model.signatures["similar_items"](item_id=tf.constant([item]))["item_id"].numpy()
            items = [found.decode() for found in answer[0] if found]
        except Exception as error:
            failure = str(error)
        assert not [name for name in sys.modules if name.split(".")[0] in ("scann", "modules")]
        print(json.dumps({"unknown": unknown, "used": sorted(used), "functions": len(functions), "items": items,
                          "failure": failure}))
"""


class Found(NamedTuple):
    """What a plain TensorFlow process says of a SavedModel."""

    unknown: list[str]
    used: list[str]
    functions: int
    items: list[str]
    failure: str


@pytest.fixture(scope="module")
def folders(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Servables: the one that the small pipeline pushed, and both layers over a catalogue with a trained tree."""
    pushed = Path(small.outcome.answer["pushed"])
    world = World(600)
    catalogue = world.catalogue()
    embedding = world.save_embedding(tmp_path_factory.mktemp("embedding") / "model")
    trained = train_scann(catalogue.vectors, "tree", partitions=16)
    parameters = SearchParameters(partitions_to_search=8, reorder=100)
    layers = {
        "stock": Tree(catalogue.vectors, trained.partitions, parameters),
        "scann": Scann(trained, parameters),
    }
    folders = {"pushed": pushed}
    for name, layer in layers.items():
        folder = tmp_path_factory.mktemp(name) / "1"
        folders[name] = save_servable(world, embedding, folder, SERVING, layer, layer=name, strategy="tree")
    return folders


@pytest.fixture(scope="module")
def found(folders: dict[str, Path]) -> dict[str, Found]:
    items = {"pushed": "5", "stock": "i5", "scann": "i5"}
    arguments = [text for name, path in folders.items() for text in (str(path), items[name])]
    # -I: neither this project nor its environment variables are there.
    command = [sys.executable, "-I", "-c", textwrap.dedent(_CHECK), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = [Found(**json.loads(line)) for line in done.stdout.splitlines()[-len(folders) :]]
    return dict(zip(folders, results, strict=True))


@pytest.mark.parametrize("name", ["pushed", "stock"])
def test_a_servable_of_the_stock_layer_uses_stock_ops_only_and_answers(found: dict[str, Found], name: str):
    assert found[name].unknown == []
    assert found[name].functions > 10 and {"GatherV2", "TopKV2", "LookupTableFindV2"} <= set(found[name].used)
    assert not found[name].failure
    assert len(set(found[name].items)) == 20 and not {"5", "i5"} & set(found[name].items)


def test_the_same_check_refuses_a_servable_of_the_scann_layer(found: dict[str, Found]):
    assert found["scann"].unknown and all(op.startswith("Scann>") for op in found["scann"].unknown)
    assert "Scann>" in found["scann"].failure and not found["scann"].items


def test_a_contract_names_exactly_the_ops_that_a_plain_tensorflow_lacks(
    folders: dict[str, Path], found: dict[str, Found]
):
    for name, folder in folders.items():
        assert list(read_servable(str(folder)).ops) == found[name].unknown


def test_the_development_server_loads_the_scann_layer_as_well(folders: dict[str, Path]):
    metrics = Metrics()
    loaded = {name: served.Servable(str(folders[name]), metrics) for name in ("stock", "scann")}
    request = {"item_id": np.array([b"i5", b"i77"], object)}
    answers = {name: servable.predict("similar_items", request) for name, servable in loaded.items()}
    assert {b"i5", b""}.isdisjoint(answers["scann"]["item_id"][0])
    for row in range(2):
        both = set(answers["scann"]["item_id"][row]) & set(answers["stock"]["item_id"][row])
        assert len(both) >= 15
    for servable in loaded.values():
        servable.close()
