"""The cheapest search parameters that reach the recall target."""

import numpy as np
import pytest
from known_towers import World

from modules.retrieval import tuning
from modules.retrieval.scann import train_partitions
from modules.retrieval.stock import stock
from modules.retrieval.top_k import SearchParameters
from modules.retrieval.tuning import QuerySample
from modules.retrieval.vectors import VectorFile
from modules.settings import Index


def trial(recall: float, milliseconds: float, error: float = 0.0) -> tuning.Trial:
    latency = tuning.Percentiles(p50=milliseconds, p99=milliseconds)
    return tuning.Trial(
        layer="stock",
        strategy="tree",
        partitions=9,
        spherical=False,
        partitions_to_search=1,
        reorder=1,
        recall=recall,
        recall_error=error,
        latency_ms=tuning.Latency(single=latency, batch_64=latency),
        build_seconds=1,
        bytes=1,
    )


def test_the_frontier_is_what_no_other_setting_beats():
    trials = [trial(0.5, 2), trial(0.9, 3), trial(0.9, 2.5), trial(0.7, 1), trial(0.95, 9), trial(0.94, 10)]
    assert [(t.recall, t.latency_ms.single.p50) for t in tuning.frontier(trials)] == [(0.7, 1), (0.9, 2.5), (0.95, 9)]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (trial(0.96, 1), trial(0.99, 2)),
        # What may be luck loses to what is not, however fast, and however high by itself.
        (trial(0.96, 2, 0.01), trial(0.97, 1, 0.05)),
        (trial(0.94, 2), trial(0.93, 1)),
    ],
)
def test_the_fastest_of_those_that_surely_reach_the_target_is_best(better: tuning.Trial, worse: tuning.Trial):
    assert tuning._better(better, worse, 0.95) and not tuning._better(worse, better, 0.95)


def test_recall_counts_scores_that_tie_with_the_last_of_the_best():
    exact = np.array([[3.0, 2.0, 1.0], [5.0, 4.0, -np.inf], [-np.inf] * 3], np.float32)
    found = np.array([[3.0, 1.0, 1.0], [5.0, 3.0, -np.inf], [-np.inf] * 3], np.float32)
    assert tuning.recall(exact, exact) == 1.0
    assert tuning.recall(found, exact) == pytest.approx((1.0 + 0.5) / 2), "a query without any candidate has no recall"
    assert tuning.recall(found[2:], exact[2:]) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["quantized", "tree"])
def test_the_least_is_scored_that_reaches_the_target_by_a_standard_error(strategy):
    world = World(3000)
    queries = QuerySample(world.user_vectors, np.full((len(world.users), 1), -1, np.int32))
    partitions = {"partitions": 50, "spherical": False} if strategy == "tree" else {}
    _, _, report = tuning.build_index(
        world.item_vectors, queries, queries, Index(strategy=strategy, recall_target=0.9, **partitions), k=10
    )
    exact = -np.sort(-(world.user_vectors @ world.item_vectors.T), axis=1)[:, :10]
    tried = [t for t in report.tried if (t.layer, t.strategy) == ("stock", strategy)]
    assert tried
    index = stock(world.item_vectors, strategy, None, train_partitions(world.item_vectors, partitions=50))
    for trial in tried:
        parameters = SearchParameters(trial.partitions_to_search or 1, trial.reorder)
        scores, _ = index.search(queries.vectors, 10, queries.excluded, parameters=parameters)
        shares = tuning.recalls(scores.numpy(), exact)
        assert trial.recall == pytest.approx(shares.mean(), abs=1e-6)
        assert trial.recall_error == pytest.approx(shares.std() / np.sqrt(len(shares)), abs=1e-6)
    for searched in {t.partitions_to_search for t in tried}:
        of = sorted((t for t in tried if t.partitions_to_search == searched), key=lambda t: t.reorder)
        enough = [t.recall - t.recall_error >= 0.9 for t in of]
        assert enough == sorted(enough), "more that is scored finds more"
        # Between the last that is too little and the first that will do nothing was left out.
        if True in enough and enough[0] is False:
            place = enough.index(True)
            steps = tuning._SCORED_FACTORS if strategy == "tree" else tuning._REORDER_FACTORS
            values = sorted({*(min(round(10 * factor), 3000) for factor in steps), 3000})
            assert values.index(of[place].reorder) == values.index(of[place - 1].reorder) + 1


@pytest.mark.slow
def test_quantized_search_reaches_the_target_by_reordering():
    world = World(3000)
    queries = QuerySample(world.user_vectors, np.full((len(world.users), 1), -1, np.int32))
    for layer in ("stock", "scann"):
        settings = Index(layer=layer, strategy="quantized", recall_target=0.97)
        _, parameters, report = tuning.build_index(world.item_vectors, queries, queries, settings, k=10)
        assert report.chosen.strategy == "quantized" and report.chosen.partitions is None
        assert report.target_met and report.chosen.reorder == parameters.reorder


@pytest.mark.slow
def test_a_large_catalogue_is_built_from_its_file_in_the_configured_layer_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "_COMPARED_BELOW", 1000)
    world = World(2000)
    vectors = world.item_vectors
    file = VectorFile(str(tmp_path / "vectors"), *vectors.shape)
    file.write(np.arange(len(vectors)), vectors)
    queries = QuerySample(world.user_vectors, np.full((len(world.users), 1), -1, np.int32))
    index, parameters, report = tuning.build_index(file, queries, queries, Index(strategy="tree"), k=10)
    assert {(m.layer, m.strategy) for m in report.measured} == {("brute_force", "exact"), ("stock", "tree")}
    assert report.target_met and index.parameters == parameters
    scores, _ = index.search(queries.vectors, 10, queries.excluded)
    exact = -np.sort(-(queries.vectors @ vectors.T), axis=1)[:, :10]
    assert tuning.recall(scores.numpy(), exact) == pytest.approx(report.chosen.recall), "the chosen one, made again"
