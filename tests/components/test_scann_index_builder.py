"""ScannIndexBuilder on real artifacts: what is built, what is measured, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from known_towers import COLUMNS, FEATURES, SERVING, World
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils, channel_utils, standard_artifacts

from components.scann_index_builder import executor
from components.scann_index_builder.component import IndexReport, ScannIndexBuilder
from components.scann_index_builder.executor import Executor
from modules.errors import UserError
from modules.retrieval import tuning
from modules.servable import catalogue as catalogues
from modules.servable.contract import read_servable
from modules.servable.warmup import WARMUP_PATH
from modules.settings import Evaluation, Index, Interactions, Items, Serving, Tables

pytestmark = pytest.mark.slow

_TABLES = Tables(interactions=Interactions(path="none"), items=Items(path="none"))


def _write(path: Path, records: list[bytes]) -> None:
    path.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(path / "data-00000-of-00001.gz"), "GZIP") as writer:
        for record in records:
            writer.write(record)


def _run(world: World, folder: Path, index: Index, serving: Serving = SERVING, splits: dict | None = None):
    """Runs the executor on real artifacts; the outputs, and the report as JSON."""
    users = [world.query_example(user) for user in range(len(world.users))]
    items = [world.item_example(item) for item in range(len(world.items))]
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "examples")
    examples.split_names = artifact_utils.encode_split_names(["train", "validation", "eval", "catalogue"])
    for split, records in (
        {"validation": users[::2], "eval": users[1::2], "catalogue": items} | (splits or {})
    ).items():
        _write(folder / "examples" / f"Split-{split}", records)
    model = standard_artifacts.Model()
    model.uri = str(folder / "model")
    world.save_embedding(folder / "model" / "Format-Serving")
    built, report = standard_artifacts.Model(), IndexReport()
    built.uri, report.uri = str(folder / "servable"), str(folder / "report")
    component = ScannIndexBuilder(
        model=channel_utils.as_channel([model]),
        examples=channel_utils.as_channel([examples]),
        features=FEATURES,
        columns=COLUMNS,
        index=index,
        serving=serving,
        evaluation=Evaluation(k=(5, 10)),
        name="films",
        tables=_TABLES,
        code="1",
    )
    options = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]
    context = BaseBeamExecutor.Context(beam_pipeline_args=options, tmp_dir=str(folder / "tmp"), unique_id="1")
    Executor(context).Do(
        {executor.MODEL_KEY: [model], executor.EXAMPLES_KEY: [examples]},
        {executor.SERVABLE_KEY: [built], executor.REPORT_KEY: [report]},
        dict(component.exec_properties),
    )
    path = folder / "servable" / "Format-Serving"
    return SimpleNamespace(
        path=path, artifact=report, report=json.loads((folder / "report" / tuning.REPORT_FILE).read_text())
    )


def _answers(path: Path, world: World, users: range) -> list[list[str]]:
    loaded = tf.saved_model.load(str(path))
    answer = loaded.signatures["evaluate"](tf.constant([world.query_example(user) for user in users]))
    return [[item.decode() for item in row] for row in answer["classes"].numpy()]


def _oracle(world: World, user: int, k: int) -> list[str]:
    scores = world.item_vectors @ world.query(world.users[user], world.histories[user])
    return [world.items[n] for n in np.argsort(-scores) if world.items[n] not in world.histories[user]][:k]


def test_small_catalogue_is_served_exactly_and_all_layers_are_measured(tmp_path):
    world = World(400)
    result = _run(world, tmp_path, Index())
    assert _answers(result.path, world, range(30)) == [_oracle(world, user, 10) for user in range(30)]

    chosen = result.report["chosen"]
    assert (chosen["layer"], chosen["strategy"], chosen["recall"]) == ("stock", "exact", 1.0)
    assert {(m["layer"], m["strategy"]) for m in result.report["measured"]} == {
        ("brute_force", "exact"), ("scann", "tree"), ("stock", "tree"), ("stock", "exact")
    }  # fmt: skip
    for measured in result.report["measured"]:
        assert measured["recall"] >= 0.9
        assert 0 < measured["latency_ms"]["single"]["p50"] <= measured["latency_ms"]["single"]["p99"]
        assert measured["bytes"] >= world.item_vectors.nbytes
    assert result.report["target_met"] and result.artifact.get_int_custom_property("target_met") == 1
    assert result.report["queries"] == {"validation": 15, "eval": 15}

    contract = read_servable(str(result.path))
    assert (contract.layer, contract.k, contract.evaluation_k, contract.ops) == ("stock", 20, 10, ())
    catalogue, partitions = catalogues.read(str(result.path))
    assert sorted(catalogue.item_ids) == sorted(world.items) and partitions is None
    numbers = [world.items.index(item) for item in catalogue.item_ids]
    np.testing.assert_array_equal(catalogue.vectors, world.item_vectors[numbers])
    np.testing.assert_array_equal(catalogue.popularity, world.popularity[numbers])
    assert (result.path / WARMUP_PATH).stat().st_size > 0
    assert not (tmp_path / "tmp").exists() or not list((tmp_path / "tmp").rglob("items*")), "nothing is left behind"


@pytest.mark.parametrize("layer", ["stock", "scann"])
def test_a_forced_tree_reaches_the_recall_target(layer, tmp_path):
    world = World(2000)
    result = _run(world, tmp_path, Index(layer=layer, strategy="tree", recall_target=0.9))
    chosen = result.report["chosen"]
    assert (chosen["layer"], chosen["strategy"]) == (layer, "tree")
    assert result.report["target_met"]
    answers = _answers(result.path, world, range(1, 30, 2))
    hits = [len(set(a) & set(_oracle(world, u, 10))) / 10 for a, u in zip(answers, range(1, 30, 2), strict=True)]
    assert np.mean(hits) == pytest.approx(chosen["recall"], abs=1e-3), "the servable has the recall of the report"
    trials = [t for t in result.report["tried"] if (t["layer"], t["strategy"]) == (layer, "tree")]
    kinds = {(t["partitions"], t["spherical"]) for t in trials}
    assert kinds == {(45, False), (45, True), (180, False), (180, True)}, "the catalogue's square root, four times that"
    enough = [t for t in trials if t["recall"] - t["recall_error"] >= 0.9]
    assert chosen["latency_ms"]["single"]["p50"] > 0 and len(enough) < len(trials)
    fastest = min(enough, key=lambda t: t["latency_ms"]["single"]["p50"])
    setting = ("partitions", "spherical", "partitions_to_search", "reorder")
    assert [chosen[key] for key in setting] == [fastest[key] for key in setting], "the cheapest that reaches the target"
    contract = read_servable(str(result.path))
    assert contract.partitions_to_search == chosen["partitions_to_search"]
    assert bool(contract.ops) == (layer == "scann")
    catalogue, partitions = catalogues.read(str(result.path))
    assert len(partitions.centroids) == chosen["partitions"]
    if not chosen["spherical"]:
        own = partitions.centroids[partitions.of_row]
        distance = ((catalogue.vectors[:, None] - partitions.centroids[None]) ** 2).sum(axis=2)
        np.testing.assert_allclose(((catalogue.vectors - own) ** 2).sum(axis=1), distance.min(axis=1), rtol=1e-4)


def test_the_catalogue_is_read_some_rows_at_a_time_into_the_order_of_popularity(tmp_path, monkeypatch):
    """As many files as Beam wrote, in no order; the oracle sorts what was written."""
    monkeypatch.setattr(executor, "_ROWS", 7)
    generator = np.random.default_rng(0)
    serving = Serving(k=5, return_columns=("title",), filter_columns=("genres",))
    rows = [
        {"item_id": f"i{number}", "vector": generator.normal(size=5).astype(np.float32).tolist(),
         "popularity": float(generator.integers(4)), "return:title": f"é{number}",
         "filter:genres": ["a"] * (number % 3)}
        for number in range(40)
    ]  # fmt: skip
    schema = executor._Embed("", 5, FEATURES, "item_id", serving).schema()
    for number, part in enumerate((rows[:13], [], rows[13:])):
        pq.write_table(pa.Table.from_pylist(part, schema), tmp_path / f"items-{number}-of-3")
    catalogue = executor._read_catalogue(str(tmp_path), serving, str(tmp_path / "vectors"))
    expected = sorted(rows, key=lambda row: (-row["popularity"], row["item_id"]))
    assert catalogue.item_ids == [row["item_id"] for row in expected]
    np.testing.assert_array_equal(catalogue.vectors[:], np.array([row["vector"] for row in expected], np.float32))
    np.testing.assert_array_equal(catalogue.popularity, [row["popularity"] for row in expected])
    assert catalogue.returned == {"title": [row["return:title"] for row in expected]}
    assert catalogue.filterable == {"genres": [row["filter:genres"] for row in expected]}


def test_an_unreachable_target_builds_the_best_found_and_says_so(tmp_path):
    world = World(2000)
    index = Index(strategy="tree", recall_target=1.0, partitions=60, partitions_to_search=1)
    result = _run(world, tmp_path, index)
    assert not result.report["target_met"] and result.artifact.get_int_custom_property("target_met") == 0
    assert result.report["chosen"]["partitions_to_search"] == 1
    assert result.report["chosen"]["recall"] < 1
    assert len(_answers(result.path, world, range(3))[0]) == 10


def test_partitions_of_directions_are_built_when_they_are_asked_for(tmp_path):
    world = World(500)
    result = _run(world, tmp_path, Index(strategy="tree", partitions=20, spherical=True))
    assert {(t["partitions"], t["spherical"]) for t in result.report["tried"]} == {(20, True), (None, None)}
    assert result.report["target_met"]


def test_more_partitions_than_items_leave_no_layer_out(tmp_path):
    result = _run(World(300), tmp_path, Index(strategy="tree", partitions=1000))
    layers = {(m["layer"], m["strategy"]) for m in result.report["measured"]}
    assert layers == {("brute_force", "exact"), ("scann", "tree"), ("stock", "tree")}


def test_a_catalogue_too_small_to_train_on_is_served(tmp_path):
    world = World(25)
    result = _run(world, tmp_path, Index(strategy="tree"))
    assert result.report["chosen"]["strategy"] == "exact"
    assert _answers(result.path, world, range(30)) == [_oracle(world, user, 10) for user in range(30)]


def test_k_larger_than_the_catalogue_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"serving\.k is 20 but the catalogue has 12 items"):
        _run(World(12), tmp_path, Index())


def test_an_empty_catalogue_is_refused(tmp_path):
    with pytest.raises(UserError, match="the catalogue is empty"):
        _run(World(40), tmp_path, Index(), splits={"catalogue": []})


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="split 'validation' has no examples"):
        _run(World(40), tmp_path, Index(), splits={"validation": []})


def test_a_diverged_model_is_refused(tmp_path):
    world = World(40)
    world.item_vectors[17, 3] = np.nan
    with pytest.raises(UserError, match=r"the embedding of item 'i17' is not finite \(1 of 40 items\)"):
        _run(world, tmp_path, Index())


def test_parameters_hold_only_what_the_servable_depends_on():
    def properties(serving: Serving, evaluation: Evaluation):
        channel = channel_utils.as_channel([standard_artifacts.Model()])
        examples = channel_utils.as_channel([standard_artifacts.Examples()])
        return ScannIndexBuilder(
            channel, examples, FEATURES, COLUMNS, Index(), serving, evaluation, name="films", tables=_TABLES, code="1"
        ).exec_properties

    plain = properties(Serving(k=5), Evaluation())
    assert plain == properties(Serving(k=5, latency_p99_ms=3), Evaluation(floors={"mrr": 0.5}))
    assert plain != properties(Serving(k=6), Evaluation())
    assert plain[executor.TABLES_KEY] == "", "what is not read"
    assert properties(Serving(k=5, known_users=1), Evaluation())[executor.TABLES_KEY] == _TABLES.model_dump_json()
