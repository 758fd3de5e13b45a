"""The servable's signatures against numpy, saved and loaded in a process that knows nothing but TensorFlow."""

import json
import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import plain_tensorflow
import pytest
import tensorflow as tf
from known_towers import FEATURES, GENRES, World, load_embedding, save_servable

from modules.retrieval.brute_force import BruteForce
from modules.retrieval.scann import train_scann
from modules.retrieval.top_k import SearchParameters
from modules.retrieval.tree import Tree
from modules.servable import warmup
from modules.servable.contract import read_servable
from modules.servable.embedding import read_variables
from modules.servable.signatures import ServableModule
from modules.settings import Serving

_SERVING = Serving(k=20, return_columns=("title", "genres"), filter_columns=("genres",))
_EVALUATION_K = 10
_ITEMS = 300


@pytest.fixture(scope="module")
def world():
    return World(_ITEMS)


@pytest.fixture(scope="module")
def embedding(world, tmp_path_factory):
    return world.save_embedding(tmp_path_factory.mktemp("embedding") / "model")


def _build(world, embedding, folder, index=None, serving=_SERVING):
    catalogue = world.catalogue()
    assets = folder / "assets"
    assets.mkdir()
    index = index or BruteForce(catalogue.vectors)
    towers = load_embedding(embedding)
    return ServableModule(towers, catalogue, index, FEATURES, serving, _EVALUATION_K, str(assets)), catalogue


@pytest.fixture(scope="module")
def signatures(world, embedding, tmp_path_factory):
    built, _ = _build(world, embedding, tmp_path_factory.mktemp("servable"))
    # Traced functions hold their variables weakly; suspended here, this one holds the servable.
    yield built.signatures()


def _strings(values):
    width = max((len(v) for v in values), default=0)
    padded = [[*v, *[""] * (width - len(v))] for v in values]
    return tf.constant(padded, tf.string, [len(values), width])


def _request(world, users, histories):
    return {"user_id": tf.constant(users), "history": _strings(histories)}


def _expected(world, vector, k, excluded=(), genre=None):
    """(item ids, scores) of the k best permitted items, by numpy."""
    scores = world.item_vectors @ vector
    permitted = [
        n for n, item in enumerate(world.items)
        if item not in excluded and (genre is None or genre in world.genres[n])
    ]  # fmt: skip
    best = sorted(permitted, key=lambda n: -scores[n])[:k]
    return [world.items[n] for n in best], scores[best]


def _expected_with_at_most(most, world, vector, k, excluded=(), genre=None):
    """(item ids, scores) of the best permitted items one after another, each unless a genre of it is full."""
    counts = Counter()
    taken = []
    for item, score in zip(*_expected(world, vector, len(world.items), excluded, genre), strict=True):
        genres = world.genres[world.items.index(item)]
        if len(taken) < k and all(counts[g] < most for g in genres):
            counts.update(genres)
            taken.append((item, score))
    return [item for item, _ in taken], np.array([score for _, score in taken])


def _assert_answer(answer, number, items, scores, k=_SERVING.k):
    found = [i.decode() for i in answer["item_id"].numpy()[number]]
    assert len(found) == k
    assert found == items + [""] * (k - len(items))
    np.testing.assert_allclose(answer["score"].numpy()[number, : len(items)], scores, rtol=1e-4, atol=1e-4)
    assert np.all(np.isneginf(answer["score"].numpy()[number, len(items) :]))


_USERS = ["u0", "u5", "u11", "nobody", ""]
_HISTORIES = [[], ["i3", "i200", "i7", "i9"], ["not an item", "i4"], ["i1", "i2"], []]


def test_recommendations_leave_out_the_history(world, signatures):
    answer = signatures["serving_default"](**_request(world, _USERS, _HISTORIES))
    for number, (user, history) in enumerate(zip(_USERS, _HISTORIES, strict=True)):
        _assert_answer(answer, number, *_expected(world, world.query(user, history), 20, history))


def test_answers_carry_the_columns_asked_for(world, signatures):
    answer = signatures["serving_default"](**_request(world, ["u5"], [[]]))
    for place, item in enumerate(answer["item_id"].numpy()[0]):
        row = world.items.index(item.decode())
        assert answer["title"].numpy()[0, place].decode() == world.titles[row]
        assert answer["genres"].numpy()[0, place].decode() == "|".join(world.genres[row])


@pytest.mark.parametrize("count", [0, 2, 50, 299])
def test_excluded_items_never_come_back(world, signatures, count):
    exclude = world.items[:count]
    request = _request(world, ["u2"], [["i250"]])
    answer = signatures["recommend_excluding"](**request, exclude=_strings([exclude]))
    _assert_answer(answer, 0, *_expected(world, world.query("u2", ["i250"]), 20, [*exclude, "i250"]))


@pytest.mark.parametrize("genre", GENRES)
def test_filters_keep_only_items_with_the_value(world, signatures, genre):
    request = _request(world, ["u2"], [["i250"]])
    answer = signatures["recommend_filtered"](**request, exclude=_strings([["i7"]]), filter_genres=_strings([[genre]]))
    _assert_answer(answer, 0, *_expected(world, world.query("u2", ["i250"]), 20, ["i7", "i250"], genre))


def test_filters_of_one_batch_are_each_requests_own(world, signatures):
    wanted = [["Drama"], [], ["no such genre"], ["Comedy", "Drama"]]
    request = _request(world, ["u2"] * 4, [[]] * 4)
    answer = signatures["recommend_filtered"](**request, exclude=_strings([[]] * 4), filter_genres=_strings(wanted))
    vector = world.query("u2", [])
    _assert_answer(answer, 0, *_expected(world, vector, 20, genre="Drama"))
    _assert_answer(answer, 1, *_expected(world, vector, 20))
    _assert_answer(answer, 2, [], [])
    either = [i for n, i in enumerate(world.items) if "Action" in world.genres[n]]
    _assert_answer(answer, 3, *_expected(world, vector, 20, either))


def test_a_filter_of_no_width_requires_nothing(world, signatures):
    request = _request(world, ["u2"], [[]])
    answer = signatures["recommend_filtered"](**request, exclude=_strings([[]]), filter_genres=_strings([[]]))
    _assert_answer(answer, 0, *_expected(world, world.query("u2", []), 20))


def test_similar_items_are_never_the_item_itself(world, signatures):
    answer = signatures["similar_items"](item_id=tf.constant(["i40", "not an item", ""]))
    # By cosine, among the best 5 k by inner product.
    vectors = world.item_vectors
    others = [n for n in np.argsort(-(vectors @ vectors[40])) if n != 40][:100]
    lengths = np.linalg.norm(vectors, axis=1)
    cosine = (vectors @ vectors[40]) / (lengths * lengths[40])
    nearest = sorted(others, key=lambda n: -cosine[n])[:20]
    _assert_answer(answer, 0, [world.items[n] for n in nearest], cosine[nearest])
    _assert_answer(answer, 1, [], [])
    _assert_answer(answer, 2, [], [])


def test_embeddings_are_those_of_the_trainers_model(world, signatures):
    query = signatures["query_embedding"](**_request(world, _USERS, _HISTORIES))["embedding"]
    expected = [world.query(user, history) for user, history in zip(_USERS, _HISTORIES, strict=True)]
    np.testing.assert_allclose(query, expected, rtol=1e-5)
    candidate = signatures["candidate_embedding"](item_id=tf.constant(["i3", "i0"]), genres=_strings([["Drama"], []]))
    np.testing.assert_allclose(candidate["embedding"], world.item_vectors[[3, 0]])
    np.testing.assert_allclose(candidate["popularity"], world.popularity[[3, 0]])


def test_an_explanation_is_of_the_items_that_are_asked_about(world, signatures):
    asked = [["i3", "not an item", "i40"], ["i7", "", "i299"]]
    users, histories = ["u5", "nobody"], [["i9", "not an item", "i200", "i4"], []]
    answer = signatures["explain"](**_request(world, users, histories), explain=_strings(asked))
    answer = {name: value.numpy() for name, value in answer.items()}
    assert answer["part"].tolist() == [[b"user_id", b"history"]] * 2 and answer["part_exact"].all()
    for row, (user, history) in enumerate(zip(users, histories, strict=True)):
        known = [item for item in history if item in world.items]
        for place, item in enumerate(asked[row]):
            reasons = [name.decode() for name in answer["reason_item_id"][row, place]]
            if item not in world.items:
                assert answer["item_id"][row, place] == b"" and np.isneginf(answer["score"][row, place])
                assert not answer["part_score"][row, place].any() and set(reasons) == {""}
                assert np.isneginf(answer["reason_score"][row, place]).all()
                continue
            number = world.items.index(item)
            vector = world.item_vectors[number]
            assert answer["item_id"][row, place].decode() == item
            assert answer["title"][row, place].decode() == world.titles[number]
            score = world.query(user, history) @ vector
            np.testing.assert_allclose(answer["score"][row, place], score, rtol=1e-4, atol=1e-4)
            of_user = world.query(user, []) @ vector
            np.testing.assert_allclose(
                answer["part_score"][row, place], [of_user, score - of_user], rtol=1e-3, atol=1e-4
            )
            assert reasons == known + [""] * (3 - len(known))
            for name, title, found in zip(
                reasons, answer["reason_title"][row, place], answer["reason_score"][row, place], strict=True
            ):
                if name:
                    of_item = world.item_vectors[world.items.index(name)] @ vector / 3
                    np.testing.assert_allclose(found, of_item, rtol=1e-3, atol=1e-4)
                assert title.decode() == (world.titles[world.items.index(name)] if name else "")


def test_a_servable_of_towers_that_cannot_explain_goes_without(world, embedding, tmp_path):
    built, _ = _build(world, embedding, tmp_path)
    built.embedding.signatures = {
        name: built.embedding.signatures[name] for name in ("query_embedding", "candidate_embedding")
    }
    assert not {"explain", "explain_embedding"} & set(built.signatures())


def test_evaluate_ranks_what_the_user_has_not_seen(world, signatures):
    users = [0, 5, 11, 23]
    answer = signatures["evaluate"](tf.constant([world.query_example(user) for user in users]))
    by_popularity = sorted(world.items, key=lambda i: (-world.popularity[world.items.index(i)], i))
    popular_head = set(by_popularity[:30])
    for number, user in enumerate(users):
        history = world.histories[user]
        vector = world.query(world.users[user], history)
        items, scores = _expected(world, vector, _EVALUATION_K, history)
        assert [i.decode() for i in answer["classes"].numpy()[number]] == items
        np.testing.assert_allclose(answer["scores"].numpy()[number], scores, rtol=1e-4)
        with_seen, _ = _expected(world, vector, _EVALUATION_K)
        assert [i.decode() for i in answer["classes_with_seen"].numpy()[number]] == with_seen
        popular = [i for i in by_popularity if i not in history][:_EVALUATION_K]
        assert [i.decode() for i in answer["popular"].numpy()[number]] == popular
        assert answer["head"].numpy()[number].tolist() == [float(i in popular_head) for i in items]
    assert answer["catalogue_size"].numpy().tolist() == [_ITEMS] * 4


def test_history_can_be_recommended_where_it_is_wanted(world, embedding, tmp_path):
    serving = _SERVING.model_copy(update={"exclude_history": False})
    built, _ = _build(world, embedding, tmp_path, serving=serving)
    functions = built.signatures()
    answer = functions["serving_default"](**_request(world, ["u5"], [_HISTORIES[1]]))
    _assert_answer(answer, 0, *_expected(world, world.query("u5", _HISTORIES[1]), 20))
    # What the Evaluator judges is what answers.
    expected = (
        _expected(world, world.query(u, h), _EVALUATION_K)[0] for u, h in zip(world.users, world.histories, strict=True)
    )
    number, items = next((n, i) for n, i in enumerate(expected) if set(i) & set(world.histories[n]))
    answer = functions["evaluate"](tf.constant([world.query_example(number)]))
    assert [i.decode() for i in answer["classes"].numpy()[0]] == items
    by_popularity = sorted(world.items, key=lambda i: (-world.popularity[world.items.index(i)], i))
    assert [i.decode() for i in answer["popular"].numpy()[0]] == by_popularity[:_EVALUATION_K]


@pytest.mark.parametrize("most", [1, 6])
def test_recommendations_hold_at_most_so_many_items_of_a_value(world, embedding, signatures, most, tmp_path):
    """Six items of each genre are short of 20 under a filter, and one item is short in every answer."""
    serving = Serving.model_validate(_SERVING.model_dump() | {"max_per_value": {"genres": most}})
    built, _ = _build(world, embedding, tmp_path, serving=serving)
    limited = built.signatures()
    request = _request(world, _USERS, _HISTORIES)
    exclude = world.items[:40]
    wanted = [["Drama"], [], ["no such genre"], ["Comedy", "Drama"], [GENRES[3]]]
    in_wanted = [[i for n, i in enumerate(world.items) if not w or set(w) & set(world.genres[n])] for w in wanted]
    excluding = {**request, "exclude": _strings([exclude] * 5)}
    plain = limited["serving_default"](**request)
    excluded = limited["recommend_excluding"](**excluding)
    filtered = limited["recommend_filtered"](**excluding, filter_genres=_strings(wanted))
    for number, (user, history) in enumerate(zip(_USERS, _HISTORIES, strict=True)):
        vector = world.query(user, history)
        _assert_answer(plain, number, *_expected_with_at_most(most, world, vector, 20, history))
        out = [*history, *exclude]
        _assert_answer(excluded, number, *_expected_with_at_most(most, world, vector, 20, out))
        out += sorted(set(world.items) - set(in_wanted[number]))
        _assert_answer(filtered, number, *_expected_with_at_most(most, world, vector, 20, out))

    # What says how alike items are, and how good the model is, knows no limits.
    for name, inputs in {
        "similar_items": {"item_id": tf.constant(["i40", "i7"])},
        "evaluate": {"examples": tf.constant([world.query_example(user) for user in (0, 5)])},
    }.items():
        expected = signatures[name](**inputs)
        for key, value in limited[name](**inputs).items():
            np.testing.assert_array_equal(value, expected[key])

    # Without limits a request pays nothing for them.
    with_loops = [
        any(node.op in ("While", "StatelessWhile") for node in each["serving_default"].graph.as_graph_def().node)
        for each in (signatures, limited)
    ]
    assert with_loops == [False, True]


_FRESH = """
    import json, sys
    import tensorflow as tf

    path, ask, result = sys.argv[1:]
    loaded = tf.saved_model.load(path)
    answer = loaded.signatures["serving_default"](**{k: tf.constant(v) for k, v in json.load(open(ask)).items()})
    foreign = set()
    for signature in loaded.signatures.values():
        graph = signature.graph.as_graph_def()
        known = set(dir(tf.raw_ops)) | {function.signature.name for function in graph.library.function}
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        foreign |= {node.op for node in nodes} - known
    modules = {name.partition(".")[0] for name in sys.modules}
    json.dump({"items": [i.decode() for i in answer["item_id"].numpy()[0]], "foreign": sorted(foreign),
               "modules": sorted({"scann", "tensorflow_transform"} & modules)}, open(result, "w"))
"""


@pytest.mark.slow
def test_a_fresh_process_with_tensorflow_alone_answers(world, embedding, tmp_path: Path):
    # A copy of the embedding model that is gone before the servable is loaded: its tables have to travel along.
    copied = str(tmp_path / "copied")
    shutil.copytree(embedding, copied)
    catalogue = world.catalogue()
    partitions = train_scann(catalogue.vectors, "tree").partitions
    index = Tree(catalogue.vectors, partitions, SearchParameters(partitions_to_search=1000, reorder=1000))
    path = save_servable(world, copied, tmp_path / "1", _SERVING, index)
    shutil.rmtree(copied)

    ask = {"user_id": ["u5"], "history": [_HISTORIES[1]]}
    (tmp_path / "ask.json").write_text(json.dumps(ask))
    command = [sys.executable, "-c", textwrap.dedent(_FRESH)]
    arguments = [str(path), str(tmp_path / "ask.json"), str(tmp_path / "answer.json")]
    plain_tensorflow.run([*command, *arguments], check=True)
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["items"] == _expected(world, world.query("u5", _HISTORIES[1]), 20, _HISTORIES[1])[0]
    assert answer["foreign"] == answer["modules"] == []

    described = read_servable(str(path))
    assert set(described.signatures) == set(warmup.read(str(path)))
    assert described.signatures["recommend_filtered"] == ("exclude", "filter_genres", "history", "user_id")
    assert described.ops == ()
    assert (path / described.item_ids).read_text().split() == list(catalogue.item_ids)
    fitted = read_variables(str(path), described.embedding)
    np.testing.assert_array_equal(fitted["item vectors/all"][:-1], world.item_vectors)
