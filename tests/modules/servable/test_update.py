"""Updates of a pushed servable against numpy: what is added is found, what is removed is gone."""

import json
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plain_tensorflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from known_towers import COLUMNS, FEATURES, GENRES, SERVING, World, save_servable

from modules import push_destination
from modules.data.tables import Column, Plan
from modules.errors import UserError
from modules.retrieval.brute_force import BruteForce
from modules.retrieval.scann import Scann, train_scann
from modules.retrieval.stock import stock
from modules.retrieval.top_k import SearchParameters
from modules.servable import catalogue as catalogues
from modules.servable import new_version, replay, update_users, user_snapshot
from modules.servable.contract import SERVABLE_PATH, read_servable
from modules.servable.embedding import read_variables
from modules.servable.update_index import NewItems, Update, update
from modules.servable.update_users import UsersUpdate
from modules.settings import Index, Interactions, Items, Serving, Tables

pytestmark = pytest.mark.slow

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

    def update(self, new: NewItems | None = None, remove=(), serving=SERVING, index=None) -> Update:
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
        return [self.world.items[candidates[at]] for at in np.argsort(-scores)[: SERVING.k]]


def _push(
    world: World, destination: Path, layer: str, strategy: str, parameters: SearchParameters, serving: Serving = SERVING
) -> None:
    catalogue = world.catalogue()
    catalogue = catalogue.only([n for n, i in enumerate(catalogue.item_ids) if int(i[1:]) < _KNOWN])
    trained = train_scann(catalogue.vectors, "tree") if strategy == "tree" else None
    index = BruteForce(catalogue.vectors)
    if layer == "stock":
        index = stock(catalogue.vectors, strategy, parameters, trained and trained.partitions)
    elif layer == "scann":
        index = Scann(trained, parameters)
    towers = world.save_embedding(destination / "embedding")
    users = world.snapshot(destination, catalogue.item_ids)
    save_servable(
        world, towers, destination / "served" / "7", serving, index, catalogue, users, layer=layer, strategy=strategy,
        partitions_to_search=parameters.partitions_to_search, reorder=parameters.reorder,
    )  # fmt: skip
    (destination / "served" / "7" / push_destination.STAMP_PATH).write_text("stamp")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What each test has a copy of."""
    world, folder = World(600), tmp_path_factory.mktemp("tree")
    _push(world, folder, "stock", "tree", SearchParameters(1000, 1000))
    return Pushed(world, folder / "served")


@pytest.fixture
def pushed(tree, tmp_path):
    return Pushed(tree.world, Path(shutil.copytree(tree.destination, tmp_path / "served")))


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
    return json.loads(plain_tensorflow.run(command, check=True).stdout)


def test_items_are_added_and_removed(pushed, tmp_path):
    world, gone = pushed.world, [3, 11, 200]
    before = pushed.best("u1", list(range(_KNOWN)))
    gone.append(world.items.index(before[0]))
    new = pushed.table(list(range(_KNOWN, 600)), tmp_path)
    outcome = pushed.update(new, [world.items[n] for n in gone])
    assert (outcome.updated_version, outcome.added, outcome.removed) == (7, 20, len(gone))
    assert outcome.catalogue_size == 600 - len(gone) and outcome.recall == 1.0

    assert push_destination.versions(str(pushed.destination)) == [7, outcome.version], "whole, and nothing beside it"
    assert {p.name for p in pushed.destination.iterdir()} == {"7", str(outcome.version)}
    path = pushed.destination / str(outcome.version)
    assert push_destination.read_stamp(str(path)) == "stamp"
    assert Update.model_validate_json((path / push_destination.UPDATE_PATH).read_text()) == outcome
    ids = (path / read_servable(str(path)).item_ids).read_text().split()
    old = [i for i in world.catalogue().item_ids if int(i[1:]) < _KNOWN and int(i[1:]) not in gone]
    assert ids == [*old, *world.items[_KNOWN:]], "in the order of popularity, new items last"
    catalogue, partitions = catalogues.read(str(path))
    assert catalogue.item_ids == ids and len(partitions.of_row) == len(ids)
    np.testing.assert_array_equal(catalogue.vectors, world.item_vectors[[world.items.index(i) for i in ids]])
    fitted = read_variables(str(path), read_servable(str(path)).embedding)
    np.testing.assert_array_equal(fitted["item vectors/all"][:-1], world.item_vectors, "a warm start can go on from it")

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
    ids = (path / read_servable(str(path)).item_ids).read_text().split()
    assert ids[-1] == world.items[3] and newcomer not in ids


@pytest.mark.parametrize(("layer", "strategy"), [("stock", "exact"), ("stock", "quantized"), ("brute_force", "exact")])
def test_every_stock_index_is_updated(layer, strategy, tmp_path):
    world = World(600)
    # Six items of each of three genres are fewer than an answer holds.
    most = {"genres": 6} if layer == "brute_force" else {}
    serving = Serving.model_validate(SERVING.model_dump() | {"max_per_value": most})
    _push(world, tmp_path, layer, strategy, SearchParameters(1, 1000), serving)
    pushed = Pushed(world, tmp_path / "served")
    outcome = pushed.update(pushed.table([590], tmp_path), ["i5"], serving)
    path = str(pushed.destination / str(outcome.version))
    loaded = tf.saved_model.load(path)
    request = {"user_id": tf.constant(["u2"]), "history": tf.zeros([1, 0], tf.string)}
    there = [n for n in [*range(_KNOWN), 590] if n != 5]
    found = [i.decode() for i in loaded.signatures["serving_default"](**request)["item_id"].numpy()[0]]
    assert read_servable(path).max_per_value == most
    if most:
        counts = Counter(genre for i in found if i for genre in world.genres[world.items.index(i)])
        assert [counts[genre] for genre in GENRES[:3]] == [6, 6, 6]
    else:
        assert found == pushed.best("u2", there)


def test_a_version_of_before_partitions_had_cells_looks_at_all_their_members(tmp_path):
    world = World(600)
    _push(world, tmp_path, "stock", "tree", SearchParameters(1000, 1))
    pushed = Pushed(world, tmp_path / "served")
    with new_version.opened(str(pushed.destination), FEATURES, SERVING) as version:
        index = version.index(version.partitions, version.catalogue)
        queries = world.user_vectors
        scores, _ = index.search(queries, 20, np.zeros((len(queries), 0), np.int32))
        exact = -np.sort(-(queries @ version.catalogue.vectors[:].T), axis=1)[:, :20]
        np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-5)


def test_a_version_of_another_contract_or_of_scanns_own_ops_is_refused(pushed, tmp_path):
    written = json.loads((pushed.destination / "7" / SERVABLE_PATH).read_text())
    (pushed.destination / "7" / SERVABLE_PATH).write_text(json.dumps(written | {"contract_version": 1}))
    with pytest.raises(UserError, match="under contract version 1, and this code reads 2; run the pipeline again"):
        pushed.update(None, ["i1"])
    _push(pushed.world, tmp_path / "other", "scann", "tree", SearchParameters(3, 50))
    other = Pushed(pushed.world, tmp_path / "other" / "served")
    with pytest.raises(UserError, match="searched by ScaNN's own ops, whose index takes no items"):
        other.update(None, ["i1"])


def test_what_cannot_be_updated_is_refused_and_nothing_is_pushed(pushed, tmp_path):
    def refused(words: str, *arguments, **keywords) -> None:
        with pytest.raises(UserError, match=words):
            pushed.update(*arguments, **keywords)
        assert [p.name for p in pushed.destination.iterdir()] == ["7"]

    refused("version 7 has no item 'i599'", None, ["i599"])
    refused("version 7 has item 'i4' already", pushed.table([4], tmp_path))
    refused("serving.k is 20 but the catalogue has 19 items", None, [f"i{n}" for n in range(_KNOWN - 19)])
    refused(
        "serving.k is 10 but version 7 was made with 20", None, ["i1"], serving=SERVING.model_copy(update={"k": 10})
    )
    refused(
        "serving.max_per_value is {'genres': 3} but version 7 was made with {}", None, ["i1"],
        serving=SERVING.model_copy(update={"max_per_value": {"genres": 3}}),
    )  # fmt: skip
    with pytest.raises(UserError, match="item 'i590' is there twice"):
        pushed.table([590, 590], tmp_path)
    pq.write_table(pa.table({"id": ["i590"], "title": ["x"]}), tmp_path / "new.parquet")
    with pytest.raises(UserError, match="has no column 'genres'"):
        NewItems.read(str(tmp_path / "new.parquet"), "id", _PLAN)
    (tmp_path / "new.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="cannot be read"):
        NewItems.read(str(tmp_path / "new.parquet"), "id", _PLAN)
    with pytest.raises(UserError, match="nothing has been pushed yet"):
        update(str(tmp_path / "none"), NewItems({}), ["i1"], FEATURES, SERVING, Index(), COLUMNS.item)


def _news(folder: Path, rows: list[tuple[str, str, int]]) -> Tables:
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "news.parquet")
    return Tables(interactions=Interactions(path=str(folder / "news.parquet")), items=Items(path="none"))


def test_updates_of_users_and_of_items_keep_each_others_result(pushed, tmp_path):
    world, known = pushed.world, SERVING.model_copy(update={"known_users": 100})

    def update_of_users(*rows: tuple[str, str, int]) -> UsersUpdate:
        return update_users.update(str(pushed.destination), _news(tmp_path, rows), ["interactions"], FEATURES, known)

    # u1 has interacted with i… before; late is new, and i590 is not in the catalogue yet.
    before = user_snapshot.read(str(pushed.destination / "7"))
    [history] = [world.histories[1]]
    first = update_of_users(("u1", "i3", 10**6), ("late", "i4", 10**6), ("late", "i590", 10**6 + 1))
    assert (first.updated_version, first.interactions, first.unknown_items) == (7, 2, 1)
    assert first.known_users == len(before) + 1
    path = pushed.destination / str(first.version)
    assert push_destination.read_stamp(str(path)) == "stamp"
    assert UsersUpdate.model_validate_json((path / push_destination.UPDATE_PATH).read_text()) == first

    second = pushed.update(pushed.table([590], tmp_path), ["i4"])
    third = update_of_users(("late", "i590", 10**6 + 1), ("u1", "i3", 10**6))
    assert (third.updated_version, third.interactions, third.known_users) == (second.version, 1, first.known_users)
    path = pushed.destination / str(third.version)
    described = read_servable(str(path))
    assert (described.catalogue_size, described.known_users) == (_KNOWN, first.known_users)
    ids = catalogues.read(str(path))[0].item_ids
    assert "i590" in ids and "i4" not in ids
    histories = {
        user["user_id"]: [ids[row] for row in user["history"]]
        for user in user_snapshot.read(str(path)).table.to_pylist()
    }
    assert histories["u1"] == [*history, "i3"][-3:] and histories["late"] == ["i590"], "removed items are gone"
    for number, user in enumerate(world.users):
        if user != "u1":
            indexed = [item for item in world.histories[number] if int(item[1:]) < _KNOWN][-3:]
            assert histories.get(user, []) == [item for item in indexed if item != "i4"]

    model = tf.saved_model.load(str(path))
    nothing = {"exclude": tf.zeros([1, 0], tf.string), "filter_genres": tf.zeros([1, 0], tf.string)}
    for user in ("u1", "late", "stranger"):
        asked = {"user_id": tf.constant([user]), "history": tf.zeros([1, 0], tf.string), **nothing}
        found = model.signatures["recommend_user"](**asked)["item_id"].numpy()[0]
        seen = histories.get(user, [])
        who = user if user in histories else ""
        expected = model.signatures["serving_default"](
            user_id=tf.constant([who]), history=tf.constant([seen], tf.string, [1, len(seen)])
        )
        assert found.tolist() == expected["item_id"].numpy()[0].tolist() and not {i.decode() for i in found} & set(seen)


def test_what_users_cannot_be_updated_with_is_refused_and_nothing_is_pushed(pushed, tmp_path):
    known = SERVING.model_copy(update={"known_users": 100})
    news = _news(tmp_path, [("u1", "i3", 10**6)])
    file = tmp_path / "news.parquet"

    def refused(words: str, serving=known, destination: Path = pushed.destination) -> None:
        with pytest.raises(UserError, match=words) as error:
            update_users.update(str(destination), news, ["interactions"], FEATURES, serving)
        assert "\n" not in str(error.value) and [p.name for p in destination.iterdir()] == ["7"]

    refused(r"serving\.known_users is 0: no user is known to the model; set it and run the pipeline", SERVING)
    for table, words in (
        (
            {"user_id": ["u1"], "timestamp": [1]},
            r"--interactions: .*news\.parquet cannot be read: it has no column 'item_id'",
        ),
        ({"user_id": ["u1"], "item_id": ["i3"]}, "it has no column 'timestamp'"),
        ({"user_id": ["u1", None], "item_id": ["i3", "i4"], "timestamp": [1, 2]}, "a row has no user_id; give every"),
        ({"user_id": ["u1"], "item_id": ["i3"], "timestamp": [1_700_000_000_000]}, "1 values of 'timestamp' are"),
        ({"user_id": ["u1"], "item_id": ["i3"], "timestamp": ["soon"]}, "for instance 'soon'"),
    ):
        pq.write_table(pa.table(table), file)
        refused(f"--interactions: .*{words}" if "--interactions" not in words else words)
    file.unlink()
    refused("--interactions: there is no file")
    described = pushed.destination / "7" / SERVABLE_PATH
    described.write_text(json.dumps(json.loads(described.read_text()) | {"known_users": 0}))
    refused(r"version 7 was made with serving\.known_users 0 and knows no users; run the pipeline")


def test_of_two_updates_at_once_none_is_lost(pushed):
    """Threads stand for processes: the lock excludes both."""
    gone = ["i3", "i11"]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda item: pushed.update(remove=[item]), gone))
    assert sorted(outcome.catalogue_size for outcome in outcomes) == [_KNOWN - 2, _KNOWN - 1]
    # The second was made from the first.
    first, second = sorted(outcomes, key=lambda outcome: outcome.version)
    assert [o.updated_version for o in (first, second)] == [7, first.version]
    path = pushed.destination / str(second.version)
    ids = (path / read_servable(str(path)).item_ids).read_text().split()
    assert len(ids) == _KNOWN - 2 and not set(gone) & set(ids)
    assert {p.name for p in pushed.destination.iterdir()} == {"7", *(str(o.version) for o in outcomes)}


def test_a_version_that_was_pushed_meanwhile_without_the_lock_is_not_overtaken(pushed, monkeypatch):
    replayed = replay.replay

    def slow(path: str) -> dict:
        shutil.copytree(pushed.destination / "7", pushed.destination / "8")
        return replayed(path)

    monkeypatch.setattr(replay, "replay", slow)
    with pytest.raises(UserError, match="a newer version than 7 was pushed meanwhile; update again"):
        pushed.update(remove=["i3"])
    assert {p.name for p in pushed.destination.iterdir()} == {"7", "8"}


def test_versions_rise_when_the_clock_was_set_back(pushed, monkeypatch):
    now = int(time.time())
    # As if it had been pushed just now.
    (pushed.destination / "7").rename(pushed.destination / str(now))
    monkeypatch.setattr(time, "time", lambda: now - 400 * 24 * 3600)
    assert pushed.update(remove=["i5"]).version == now + 1


def test_a_version_that_is_no_servable_any_more_is_named(pushed):
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as error:
            pushed.update(remove=["i3"])
        assert "\n" not in str(error.value)
        assert [p.name for p in pushed.destination.iterdir()] == ["7"]

    path = pushed.destination / "7"
    # This version has no manifest: TensorFlow finds what is wrong.
    variables = path / "variables" / "variables.data-00000-of-00001"
    whole = variables.read_bytes()
    variables.write_bytes(whole[: len(whole) // 2])
    refused("7 does not load, a file of it may be damaged")
    variables.write_bytes(whole)
    (path / "saved_model.pb").write_bytes(b"\xff" * 100)
    refused("7 does not load, a file of it may be damaged")
    described = path / "assets.extra" / "servable.json"
    for content, words in (
        (b"{}", "contract_version: Field required"),
        (b"\xff\xfe", "servable.json"),
        (b"[1", "Invalid JSON"),
    ):
        described.write_bytes(content)
        refused(words)
    described.unlink()
    refused("servable.json is missing")


@pytest.mark.parametrize("column", ["string", "binary"])
def test_ids_that_are_not_utf_8_are_refused(tmp_path, column):
    ids = pa.array([b"caf\xe9"], pa.binary())
    if column == "string":
        # Parquet's writers do not look, and neither do its readers.
        ids = pa.Array.from_buffers(pa.string(), 1, ids.buffers())
    pq.write_table(pa.table({"id": ids, "title": ["x"], "genres": [["a"]]}), tmp_path / "new.parquet")
    with pytest.raises(
        UserError, match=r"new\.parquet cannot be read: row 1 has in column 'id' b'caf.*not text in UTF-8"
    ):
        NewItems.read(str(tmp_path / "new.parquet"), "id", _PLAN)


def test_a_torn_second_file_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["i590"], "title": ["x"], "genres": [["a"]]}), tmp_path / "new-1.parquet")
    for content, words in ((b"PAR1 torn", "cannot be read"), (b"", "cannot be read")):
        (tmp_path / "new-2.parquet").write_bytes(content)
        with pytest.raises(UserError, match=f"new-2.parquet {words}"):
            NewItems.read(str(tmp_path / "new-*.parquet"), "id", _PLAN)
    pq.write_table(pa.table({"id": ["i591"], "title": ["x"]}), tmp_path / "new-2.parquet")
    with pytest.raises(UserError, match=r"new-2\.parquet cannot be read: it has no column 'genres'"):
        NewItems.read(str(tmp_path / "new-*.parquet"), "id", _PLAN)
