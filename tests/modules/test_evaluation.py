"""The retrieval metrics against plain Python, one query and one list at a time."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modules import evaluation
from modules.settings import metric_names

CUTS = [1, 3, 5]


def dcg(ranking, relevant, k):
    return sum(1 / math.log2(place + 1) for place, item in enumerate(ranking[:k], start=1) if item in relevant)


def expected(query, k):
    """The metrics of one query, straight from their definitions; absent where it does not count."""
    relevant = set(query["relevant"]) - set(query["history"])
    result = {}
    if relevant:
        found = set(query["classes"][:k]) & relevant
        popular = set(query["popular"][:k]) & relevant
        best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
        result = {
            f"recall@{k}": len(found) / len(relevant),
            f"precision@{k}": len(found) / k,
            f"hit_rate@{k}": 1.0 if found else 0.0,
            f"ndcg@{k}": dcg(query["classes"], relevant, k) / best,
            f"popular_ndcg@{k}": dcg(query["popular"], relevant, k) / best,
            f"popular_recall@{k}": len(popular) / len(relevant),
            f"recall_lift@{k}": (len(found) - len(popular)) / len(relevant),
            f"ndcg_lift@{k}": (dcg(query["classes"], relevant, k) - dcg(query["popular"], relevant, k)) / best,
            "mrr": next((1 / p for p, item in enumerate(query["classes"], start=1) if item in relevant), 0.0),
        }
    if query["relevant"]:
        found = set(query["classes_with_seen"][:k]) & set(query["relevant"])
        result[f"recall_with_seen@{k}"] = len(found) / len(set(query["relevant"]))
        result[f"precision_with_seen@{k}"] = len(found) / k
    if query["classes"]:
        top = query["classes"][:k]
        result[f"popular_share@{k}"] = sum(item in query["top_items"] for item in top) / len(top)
    return result


def measure(queries):
    """What the code under test makes of a batch."""
    answers = [outputs(query) for query in queries]
    batch = {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
    relevant, history = ([query[name] for query in queries] for name in ("relevant", "history"))
    return evaluation.measure(batch, relevant, history, CUTS)


def outputs(query, width=6):
    """The servable's answer to one query: padded with ""."""

    def padded(items):
        return np.array([*items, *[b""] * (width - len(items))], object)

    head = [float(item in query["top_items"]) for item in query["classes"]]
    return {
        "classes": padded(query["classes"]),
        "classes_with_seen": padded(query["classes_with_seen"]),
        "popular": padded(query["popular"]),
        "head": np.array([*head, *[1.0] * (width - len(head))], np.float32),
        "catalogue_size": np.float32(12),
    }


def random_query(rng):
    catalogue = [b"i%d" % i for i in range(12)]
    history = rng.sample(catalogue, rng.randint(0, 11))
    unseen = [item for item in catalogue if item not in history]
    return {
        "history": history,
        "relevant": rng.sample(catalogue, rng.randint(0, 5)),
        "classes": rng.sample(unseen, min(len(unseen), 6)),
        "classes_with_seen": rng.sample(catalogue, 6),
        "popular": unseen[:6],
        "top_items": set(catalogue[:2]),
    }


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_each_query_of_a_batch_is_measured_by_the_definitions(seed):
    rng = random.Random(seed)
    queries = [random_query(rng) for _ in range(rng.randint(1, 4))]
    for query, measured in zip(queries, measure(queries).values, strict=True):
        values = dict(zip(evaluation.mean_names(CUTS), measured, strict=True))
        wanted = {name: value for k in CUTS for name, value in expected(query, k).items()}
        assert {name for name, value in values.items() if not np.isnan(value)} == set(wanted)
        for name, value in wanted.items():
            assert values[name] == pytest.approx(value), name


def test_a_column_that_no_query_has_is_empty():
    query = random_query(random.Random(1))
    batch = {name: value[np.newaxis] for name, value in outputs(query).items()}
    measured = evaluation.measure(batch, [None], [None], CUTS)
    assert {name for name, value in zip(evaluation.mean_names(CUTS), measured.values[0], strict=True)
            if not np.isnan(value)} <= {f"popular_share@{k}" for k in CUTS}  # fmt: skip


def interval(values, confidence=0.95):
    """Student's, of a mean, by the textbook."""
    values = np.asarray(values)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def averages():
    """The combiner that TFMA runs."""
    [computation] = evaluation.RetrievalMetrics(CUTS).computations()
    return computation.combiner


@pytest.mark.parametrize("parts", [1, 3])
def test_averages_over_queries_and_covers_over_all(parts):
    """The combiner's mean of many queries, merged from parts, is the mean of the definitions."""
    rng = random.Random(7)
    queries = [random_query(rng) for _ in range(60)]
    combiner = averages()
    accumulators = []
    for part in range(parts):
        sums = combiner.create_accumulator()
        measured = measure(queries[part::parts])
        for some in (range(0, 3), range(3, 4), range(4, len(measured.values))):
            sums = combiner.add_input(sums, measured.sums(some))
        accumulators.append(sums)
    result = {
        key.name: value for key, value in combiner.extract_output(combiner.merge_accumulators(accumulators)).items()
    }

    for k in CUTS:
        singles = [expected(query, k) for query in queries]
        for name in {name for single in singles for name in single}:
            of_queries = [single[name] for single in singles if name in single]
            assert result[name] == pytest.approx(sum(of_queries) / len(of_queries)), name
            assert result[evaluation.counted_as(name)] == len(of_queries), name
            low, high = interval(of_queries)
            assert result[name + "/lower"] == pytest.approx(low, abs=1e-9), name
            assert result[name + "/upper"] == pytest.approx(high, abs=1e-9), name
        shown = {item for query in queries for item in query["classes"][:k]}
        assert result[f"coverage@{k}"] == pytest.approx(len(shown) / 12)
    assert result["queries"] == sum(bool(set(q["relevant"]) - set(q["history"])) for q in queries)


def test_names_are_those_that_the_configuration_knows():
    combiner = averages()
    names = {key.name for key in combiner.extract_output(combiner.create_accumulator())}
    # What has a slash is beside a metric: the ends of its interval, the queries that it is over.
    beside = {name for name in names if "/" in name}
    lifts = {f"{name}_lift@{k}" for name in ("ndcg", "recall") for k in CUTS}
    assert set(metric_names(tuple(CUTS))) == names - beside - lifts - {"queries"}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_two_models_are_compared_query_by_query(seed):
    rng = random.Random(seed)
    queries = [random_query(rng) for _ in range(20)]
    # The baseline has other rankings for the same users.
    others = [query | {name: random_query(rng)[name] for name in ("classes", "classes_with_seen")} for query in queries]
    allowed = {"ndcg@3": 0.1, "popular_share@3": 0.2}
    ours, before = measure(queries), measure(others)
    values = evaluation.compared(ours, before, CUTS, allowed).values
    names = evaluation.mean_names(CUTS)
    columns = dict(zip([*names, *evaluation.paired_names(CUTS, allowed)], values.T, strict=True))
    one, other = (dict(zip(names, each.values.T, strict=True)) for each in (ours, before))
    for name in names:
        np.testing.assert_array_equal(columns[name], one[name])
        np.testing.assert_array_equal(columns[name + "/difference"], one[name] - other[name])
    np.testing.assert_allclose(columns["ndcg@3/margin"], one["ndcg@3"] - 0.9 * other["ndcg@3"], atol=1e-12)
    # Less of what everybody knows is better.
    share = 1.2 * other["popular_share@3"] - one["popular_share@3"]
    np.testing.assert_allclose(columns["popular_share@3/margin"], share, atol=1e-12)
