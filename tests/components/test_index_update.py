"""Updates of a pushed servable against numpy: what is added is found, what is removed is gone."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from known_towers import COLUMNS, FEATURES, World

from components.baseline_resolver import versions
from components.scann_index_builder.update import UPDATE_PATH, NewItems, Update, _index, update
from modules import retrieval, servable
from modules.data.tables import Column, Plan
from modules.errors import UserError
from modules.retrieval import BruteForce, Effort
from modules.servable import Description, Servable
from modules.settings import Index, Serving

pytestmark = pytest.mark.slow

_SERVING = Serving(k=20, return_columns=("title",), filter_columns=("genres",))
_KNOWN = 580
_PLAN = Plan(
    interactions=(),
    users=(),
    items=(Column(name="item_id", source="id"), Column(name="genres", source="genres", multivalued=True)),
    returned=(Column(name="title", source="title", multivalued=True),),
    interaction_slices=(),
    user_slices=(),
    activity_slices=(),
)


@dataclass(frozen=True)
class Pushed:
    """A pushed servable over the first items of a world, and a table with the rest."""

    world: World
    destination: Path

    def update(self, new: NewItems | None = None, remove=(), serving=_SERVING, index=None) -> Update:
        return update(
            str(self.destination), new or NewItems({}), remove, FEATURES, serving, index or Index(), COLUMNS.item
        )

    def table(self, items: list[int], folder: Path) -> NewItems:
        world = self.world
        rows = [{"id": world.items[n], "title": world.titles[n], "genres": world.genres[n]} for n in items]
        pq.write_table(pa.Table.from_pylist(rows), folder / "new.parquet")
        return NewItems.read(str(folder / "new.parquet"), "id", _PLAN)

    def best(self, user: str, items: list[int], genre: str | None = None) -> list[str]:
        """The 20 best of some items for a user without a history, by numpy."""
        candidates = [n for n in items if genre is None or genre in self.world.genres[n]]
        scores = self.world.item_vectors[candidates] @ self.world.query(user, [])
        return [self.world.items[candidates[at]] for at in np.argsort(-scores)[: _SERVING.k]]


def _push(world: World, destination: Path, layer: str, strategy: str, effort: Effort) -> None:
    catalogue = world.catalogue()
    catalogue = catalogue.only([n for n, i in enumerate(catalogue.item_ids) if int(i[1:]) < _KNOWN])
    trained = retrieval.train_scann(catalogue.vectors, "tree") if strategy == "tree" else None
    index = BruteForce(catalogue.vectors)
    if layer == "stock":
        index = retrieval.stock(catalogue.vectors, strategy, effort, trained)
    model = tf.saved_model.load(world.save_embedding(destination / "embedding"))
    queries = [world.query_example(user) for user in range(len(world.users))]
    items = [world.item_example(item) for item in range(8)]
    warmup = servable.warmup_requests(catalogue, FEATURES, _SERVING, COLUMNS.item, queries, items)
    description = Description(
        model="films",
        k=_SERVING.k,
        evaluation_k=10,
        layer=layer,
        strategy=strategy,
        partitions_to_search=effort.partitions_to_search,
        reorder=effort.reorder,
        catalogue_size=_KNOWN,
        dimension=catalogue.vectors.shape[1],
        query_columns=("user_id", "history"),
        history_column="history",
        exclude_history=True,
        return_columns=_SERVING.return_columns,
        filter_columns=_SERVING.filter_columns,
        signatures={},
    )
    with tempfile.TemporaryDirectory() as assets:
        built = Servable(model, catalogue, index, FEATURES, _SERVING, 10, assets)
        servable.save(built, str(destination / "served" / "7"), description, warmup)
    (destination / "served" / "7" / versions.STAMP).write_text("stamp")


@pytest.fixture
def pushed(tmp_path):
    world = World(600)
    _push(world, tmp_path, "stock", "tree", Effort(1000, 1000))
    return Pushed(world, tmp_path / "served")


_FRESH = """
    import json, sys
    import tensorflow as tf
    model = tf.saved_model.load(sys.argv[1])
    ask = json.loads(sys.argv[2])
    answers = {}
    for name, inputs in ask.items():
        signature, _, _ = name.partition(":")
        inputs = {k: tf.constant(v, tf.string, [1, 0]) if v == [[]] else tf.constant(v) for k, v in inputs.items()}
        answers[name] = {k: v.numpy().tolist() for k, v in model.signatures[signature](**inputs).items()}
    print(json.dumps(answers, default=bytes.decode))
"""


def _ask(path: Path, **requests) -> dict:
    """Answers of a fresh process that knows nothing but TensorFlow."""
    import textwrap

    command = [sys.executable, "-c", textwrap.dedent(_FRESH), str(path), json.dumps(requests)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_items_are_added_and_removed(pushed, tmp_path):
    world, gone = pushed.world, [3, 11, 200]
    before = pushed.best("u1", list(range(_KNOWN)))
    gone.append(world.items.index(before[0]))
    new = pushed.table(list(range(_KNOWN, 600)), tmp_path)
    outcome = pushed.update(new, [world.items[n] for n in gone])
    assert (outcome.updated_version, outcome.added, outcome.removed) == (7, 20, len(gone))
    assert outcome.catalogue_size == 600 - len(gone) and outcome.recall == 1.0

    assert versions.versions(str(pushed.destination)) == [7, outcome.version], "whole, and nothing beside it"
    assert {p.name for p in pushed.destination.iterdir()} == {"7", str(outcome.version)}
    path = pushed.destination / str(outcome.version)
    assert versions.read_stamp(str(path)) == "stamp"
    assert Update.model_validate_json((path / UPDATE_PATH).read_text()) == outcome
    ids = (path / servable.load_description(str(path)).item_ids).read_text().split()
    old = [i for i in world.catalogue().item_ids if int(i[1:]) < _KNOWN and int(i[1:]) not in gone]
    assert ids == [*old, *world.items[_KNOWN:]], "in the order of popularity, new items last"

    there = [n for n in range(600) if n not in gone]
    # The new item that u1 likes best, to look at what is said of it.
    newcomer = next(i for i in pushed.best("u1", list(range(_KNOWN, 600))))
    request = {"user_id": ["u1"], "history": [[]]}
    answers = _ask(
        path,
        serving_default=request,
        recommend_filtered={**request, "exclude": [[]], "filter_genres": [["Très rare"]]},
        similar_items={"item_id": [newcomer]},
        **{"similar_items:gone": {"item_id": [world.items[3]]}},
    )
    answer = answers["serving_default"]
    assert answer["item_id"][0] == pushed.best("u1", there)
    assert answer["title"][0] == [world.titles[world.items.index(i)] for i in answer["item_id"][0]]
    rare = pushed.best("u1", there, "Très rare")
    assert answers["recommend_filtered"]["item_id"][0] == rare + [""] * (20 - len(rare))
    assert newcomer not in answers["similar_items"]["item_id"][0] and "" not in answers["similar_items"]["item_id"][0]
    assert set(answers["similar_items:gone"]["item_id"][0]) == {""}

    # An update of an update; an item comes back.
    second = pushed.update(pushed.table([3], tmp_path), [newcomer])
    assert (second.updated_version, second.catalogue_size) == (outcome.version, outcome.catalogue_size)
    path = pushed.destination / str(second.version)
    ids = (path / servable.load_description(str(path)).item_ids).read_text().split()
    assert ids[-1] == world.items[3] and newcomer not in ids


@pytest.mark.parametrize(("layer", "strategy"), [("stock", "exact"), ("stock", "quantized"), ("brute_force", "exact")])
def test_every_stock_index_is_updated(layer, strategy, tmp_path):
    world = World(600)
    _push(world, tmp_path, layer, strategy, Effort(1, 1000))
    pushed = Pushed(world, tmp_path / "served")
    outcome = pushed.update(pushed.table([590], tmp_path), ["i5"])
    loaded = tf.saved_model.load(str(pushed.destination / str(outcome.version)))
    request = {"user_id": tf.constant(["u2"]), "history": tf.zeros([1, 0], tf.string)}
    there = [n for n in [*range(_KNOWN), 590] if n != 5]
    found = [i.decode() for i in loaded.signatures["serving_default"](**request)["item_id"].numpy()[0]]
    assert found == pushed.best("u2", there)


def test_a_tree_of_another_layout_is_refused(pushed):
    description = servable.load_description(str(pushed.destination / "7"))
    with pytest.raises(UserError, match="a partition tree of an older layout: run the pipeline"):
        _index(tf.Module(), description, pushed.world.item_vectors, np.arange(3), Effort())


def test_what_cannot_be_updated_is_refused_and_nothing_is_pushed(pushed, tmp_path):
    def refused(words: str, *arguments, **keywords) -> None:
        with pytest.raises(UserError, match=words):
            pushed.update(*arguments, **keywords)
        assert [p.name for p in pushed.destination.iterdir()] == ["7"]

    refused("version 7 has no item 'i599'", None, ["i599"])
    refused("version 7 has item 'i4' already", pushed.table([4], tmp_path))
    refused("serving.k is 20 but the catalogue has 19 items", None, [f"i{n}" for n in range(_KNOWN - 19)])
    refused(
        "serving.k is 10 but version 7 was made with 20", None, ["i1"], serving=_SERVING.model_copy(update={"k": 10})
    )
    with pytest.raises(UserError, match="item 'i590' is there twice"):
        pushed.table([590, 590], tmp_path)
    pq.write_table(pa.table({"id": ["i590"], "title": ["x"]}), tmp_path / "new.parquet")
    with pytest.raises(UserError, match="has no column 'genres'"):
        NewItems.read(str(tmp_path / "new.parquet"), "id", _PLAN)
    (tmp_path / "new.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="cannot be read"):
        NewItems.read(str(tmp_path / "new.parquet"), "id", _PLAN)
    with pytest.raises(UserError, match="nothing has been pushed yet"):
        update(str(tmp_path / "none"), NewItems({}), ["i1"], FEATURES, _SERVING, Index(), COLUMNS.item)
