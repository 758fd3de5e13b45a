"""The Evaluator on real artifacts: a SavedModel with an `evaluate` signature, TFRecord examples, TFMA between them."""

import math
import os
import random

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from tfx import types
from tfx.components.evaluator import constants
from tfx.types import standard_artifacts
from tfx.types import standard_component_specs as keys
from tfx.utils import proto_utils

from components.evaluator import executor, summary
from components.evaluator.component import Evaluator
from modules import evaluation, gates
from modules.settings import Evaluation, Slice

pytestmark = pytest.mark.slow

ITEMS = [b"i%d" % number for number in range(20)]
POPULAR = ITEMS[:2]
"""The catalogue's most popular 10 %."""
K = (2, 5)


class Servable(tf.Module):
    """Answers everybody with one ranking, without what they have seen."""

    def __init__(self, ranking, width=5, batch=None):
        super().__init__()
        self.ranking, self.popular, self.width = tf.constant(ranking), tf.constant(ITEMS), width
        self.batch = batch

    def unseen(self, ranking, history):
        seen = tf.reduce_any(ranking[None, :, None] == history[:, None, :], axis=2)
        order = tf.argsort(tf.cast(seen, tf.int32), axis=1, stable=True)
        left = tf.reduce_sum(tf.cast(~seen, tf.int32), axis=1, keepdims=True)
        return tf.where(tf.range(len(ranking))[None, :] < left, tf.gather(ranking, order), "")[:, : self.width]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def evaluate(self, examples):
        parsed = tf.io.parse_example(examples, {"history": tf.io.VarLenFeature(tf.string)})
        history = tf.sparse.to_dense(parsed["history"], default_value="")
        history = tf.pad(history, [[0, 0], [0, 1]], constant_values="")
        batch = tf.shape(examples)[0]
        if self.batch is not None:
            tf.debugging.assert_equal(batch, self.batch)
        classes = self.unseen(self.ranking, history)
        return {
            "classes": classes,
            "scores": tf.zeros_like(classes, tf.float32),
            "classes_with_seen": tf.tile(self.ranking[None, : self.width], [batch, 1]),
            "popular": self.unseen(self.popular, history),
            "head": tf.cast(tf.reduce_any(classes[:, :, None] == tf.constant(POPULAR), axis=2), tf.float32),
            "catalogue_size": tf.fill([batch], float(len(ITEMS))),
        }


def query(history, relevant, gender):
    def of(values):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    columns = {"user_id": of([b"u"]), "relevant_items": of(relevant), "slice_gender": of([gender])}
    if history:
        columns["history"] = of(history)
    return tf.train.Example(features=tf.train.Features(feature=columns))


def random_queries():
    """People who like the last items of the catalogue, which are the least popular."""
    rng = random.Random(3)
    return [
        (
            rng.sample(ITEMS, rng.choice([0, 0, 3, 19])),
            rng.sample(ITEMS[8:], rng.randint(1, 4)),
            rng.choice([b"F", b"M"]),
        )
        for _ in range(40)
    ]


@pytest.fixture(scope="session")
def queries():
    return random_queries()


@pytest.fixture(scope="session")
def examples(tmp_path_factory, queries):
    artifact = standard_artifacts.Examples()
    artifact.uri = str(tmp_path_factory.mktemp("examples"))
    artifact.split_names = '["eval"]'
    folder = os.path.join(artifact.uri, "Split-eval")
    os.makedirs(folder)
    path = os.path.join(folder, "data_tfrecord-00000-of-00001.gz")
    with tf.io.TFRecordWriter(path, "GZIP") as writer:
        for one in queries:
            writer.write(query(*one).SerializeToString())
    return artifact


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    made = {}

    def make(ranking, version="", width=5, signature="evaluate", batch=None):
        key = (tuple(ranking), version, width, signature, batch)
        if key not in made:
            artifact = standard_artifacts.Model()
            artifact.uri = str(tmp_path_factory.mktemp("model"))
            servable = Servable(ranking, width, batch)
            folder = os.path.join(artifact.uri, "Format-Serving")
            tf.saved_model.save(servable, folder, signatures={signature: servable.evaluate})
            artifact.set_string_custom_property("version", version)
            made[key] = artifact
        return made[key]

    return make


GOOD = ITEMS[::-1]
"""Begins with what people like."""
SO_SO = [*ITEMS[12:], *ITEMS[:12]]
BAD = ITEMS
"""The most popular items."""


@pytest.fixture
def evaluate(tmp_path, examples):
    """Runs the executor; returns the blessing and the evaluation artifact's folder."""

    def run(candidate, settings, baseline=None, history="history"):
        blessing, found = standard_artifacts.ModelBlessing(), standard_artifacts.ModelEvaluation()
        blessing.uri, found.uri = str(tmp_path / "blessing"), str(tmp_path / "evaluation")
        os.makedirs(blessing.uri)
        inputs = {keys.EXAMPLES_KEY: [examples], keys.MODEL_KEY: [candidate]}
        if baseline:
            inputs[keys.BASELINE_MODEL_KEY] = [baseline]
        executor.Executor().Do(
            inputs,
            {keys.EVALUATION_KEY: [found], keys.BLESSING_KEY: [blessing]},
            {
                keys.EVAL_CONFIG_KEY: proto_utils.proto_to_json(gates.eval_config(settings, history)),
                keys.EXAMPLE_SPLITS_KEY: "null",
            },
        )
        return blessing, found.uri

    return run


def is_blessed(blessing):
    value = blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY)
    assert os.path.exists(os.path.join(blessing.uri, "BLESSED" if value else "NOT_BLESSED"))
    return value == constants.BLESSED_VALUE


def per_query(queries, ranking, k):
    """Recall and NDCG of each query that counts under one fixed ranking, by hand; and the items that are shown."""
    recalls, gains, shown = [], [], set()
    for history, relevant, _ in queries:
        answer = [item for item in ranking if item not in history][:k]
        shown |= set(answer)
        wanted = set(relevant) - set(history)
        if not wanted:
            continue
        recalls.append(len(wanted & set(answer)) / len(wanted))
        dcg = sum(1 / math.log2(place + 2) for place, item in enumerate(answer) if item in wanted)
        gains.append(dcg / sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted)))))
    return {"recall": np.array(recalls), "ndcg": np.array(gains)}, shown


def oracle(queries, ranking, k):
    """Recall, NDCG and coverage of one fixed ranking."""
    values, shown = per_query(queries, ranking, k)
    return {
        "recall": values["recall"].mean(),
        "ndcg": values["ndcg"].mean(),
        "coverage": len(shown) / len(ITEMS),
        "queries": len(values["recall"]),
    }


def half_width(values, confidence=0.95):
    """Of Student's interval of a mean, by the textbook."""
    return stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))


def test_metrics_by_slice_and_a_blessing(evaluate, model, queries):
    settings = Evaluation(k=K, slices=(Slice(column="gender"),), floors={"recall@5": 0.1}, max_regression={})
    blessing, uri = evaluate(model(GOOD), settings)

    assert is_blessed(blessing)
    metrics = evaluation.read(uri).metrics
    assert list(metrics) == ["overall", "gender=F", "gender=M"]
    for name, some in (
        ("overall", queries),
        ("gender=F", [one for one in queries if one[2] == b"F"]),
        ("gender=M", [one for one in queries if one[2] == b"M"]),
    ):
        for k in K:
            wanted = oracle(some, GOOD, k)
            for metric in ("recall", "ndcg", "coverage"):
                assert metrics[name][f"{metric}@{k}"] == pytest.approx(wanted[metric]), (name, metric, k)
            assert metrics[name][f"popular_ndcg@{k}"] == pytest.approx(oracle(some, ITEMS, k)["ndcg"])
        assert metrics[name]["queries"] == oracle(some, GOOD, 2)["queries"]
    assert evaluation.read(uri).baseline_metrics == {}
    assert gates.validation_failures(uri) == []
    found = summary.read(uri)
    assert found.metrics == metrics
    assert (found.failures, found.baseline_version, found.baseline_note) == ([], "", "no baseline")


@pytest.mark.parametrize("batch", [40, 1])
def test_queries_are_asked_together_and_one_by_one_only_where_that_fails(evaluate, model, queries, batch):
    """The servable takes batches of one size: that of the split, or a single query."""
    assert len(queries) == 40
    settings = Evaluation(k=K, slices=(Slice(column="gender"),), max_regression={})
    blessing, uri = evaluate(model(GOOD, batch=batch), settings)
    assert is_blessed(blessing)
    metrics = evaluation.read(uri).metrics
    assert list(metrics) == ["overall", "gender=F", "gender=M"]
    assert metrics["overall"]["ndcg@5"] == pytest.approx(oracle(queries, GOOD, 5)["ndcg"])
    assert metrics["overall"]["coverage@2"] == pytest.approx(oracle(queries, GOOD, 2)["coverage"])


def test_below_a_floor_and_not_above_the_most_popular_items(evaluate, model, queries):
    settings = Evaluation(k=K, floors={"recall@5": 0.9}, max_regression={})
    blessing, uri = evaluate(model(BAD), settings)

    assert not is_blessed(blessing)
    recall, ndcg = oracle(queries, BAD, 5)["recall"], oracle(queries, BAD, 2)["ndcg"]
    assert sorted(gates.validation_failures(uri)) == [
        f"ndcg@2 is {ndcg:.4g}, the most popular items reach {ndcg:.4g} (short by 0)",
        f"recall@5 is {recall:.4g}, floor 0.9 (short by {0.9 - recall:.2g})",
    ]
    assert summary.read(uri).failures == gates.validation_failures(uri)


def test_worse_than_the_pushed_model(evaluate, model, queries):
    settings = Evaluation(k=K, max_regression={"ndcg@2": 0.1})
    blessing, uri = evaluate(model(SO_SO), settings, baseline=model(GOOD, version="17"))

    assert not is_blessed(blessing)
    ours, before = oracle(queries, SO_SO, 2)["ndcg"], oracle(queries, GOOD, 2)["ndcg"]
    assert ours < before
    assert gates.validation_failures(uri) == [
        f"ndcg@2 is {ours:.4g}, the last pushed model has {before:.4g} ({(ours - before) / before:+.1%}, allowed 10.0%)"
    ]
    assert evaluation.read(uri).baseline_metrics["overall"]["ndcg@2"] == pytest.approx(before)
    assert evaluation.read(uri).metrics["overall"]["ndcg@2"] == pytest.approx(ours)
    assert summary.read(uri).baseline_version == "17"


def test_better_than_the_pushed_model(evaluate, model):
    blessing, uri = evaluate(
        model(GOOD), Evaluation(k=K, max_regression={"ndcg@2": 0.0}), baseline=model(SO_SO, version="17")
    )
    assert is_blessed(blessing)
    assert summary.read(uri).baseline_note == ""


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_figures_and_differences_of_each_slice_have_their_interval(evaluate, model, queries, confidence):
    settings = Evaluation(k=K, slices=(Slice(column="gender"),), max_regression={}, confidence=confidence)
    _, uri = evaluate(model(GOOD), settings, baseline=model(SO_SO, version="17"))
    found, shown_at = summary.read(uri), confidence or 0.95
    assert found.confidence == shown_at
    assert list(found.half_widths) == list(found.baseline_differences) == ["overall", "gender=F", "gender=M"]
    for name, some in (
        ("overall", queries),
        ("gender=F", [one for one in queries if one[2] == b"F"]),
        ("gender=M", [one for one in queries if one[2] == b"M"]),
    ):
        for k in K:
            (ours, _), (before, _), (popular, _) = (per_query(some, each, k) for each in (GOOD, SO_SO, BAD))
            for metric in ("recall", "ndcg"):
                half, key = found.half_widths[name], f"{metric}@{k}"
                assert half[key] == pytest.approx(half_width(ours[metric], shown_at)), (name, key)
                lift = f"{metric}_lift@{k}"
                of_lift = half_width(ours[metric] - popular[metric], shown_at)
                assert half[lift] == pytest.approx(of_lift, abs=1e-9), (name, lift)
                difference = ours[metric] - before[metric]
                assert found.baseline_differences[name][key] == pytest.approx(difference.mean(), abs=1e-9)
                of_difference = found.baseline_difference_half_widths[name][key]
                assert of_difference == pytest.approx(half_width(difference, shown_at), abs=1e-9)
        # All of them together are shown so many items; there is nothing to be a mean of.
        assert not [metric for metric in found.half_widths[name] if metric.startswith(("coverage", "queries"))]


def test_a_gate_that_judges_intervals_says_them(evaluate, model, queries):
    settings = Evaluation(k=K, floors={"recall@5": 0.9}, max_regression={"ndcg@2": 0.1}, confidence=0.95)
    blessing, uri = evaluate(model(BAD), settings, baseline=model(GOOD, version="17"))

    assert not is_blessed(blessing)
    ours, before = per_query(queries, BAD, 2)[0]["ndcg"], per_query(queries, GOOD, 2)[0]["ndcg"]
    recall = per_query(queries, BAD, 5)[0]["recall"]
    counted = len(recall)
    beyond = 0.9 * before - ours

    def interval(values):
        half = half_width(values)
        low, high = values.mean() - half, values.mean() + half
        return f"95% interval {low:.4g} to {high:.4g} over {counted} queries"

    assert sorted(gates.validation_failures(uri)) == [
        f"ndcg@2 is {ours.mean():.4g}, the last pushed model has {before.mean():.4g} "
        f"({ours.mean() / before.mean() - 1:+.1%}, allowed 10.0%; "
        f"beyond that by {beyond.mean():.4g}, {interval(beyond)})",
        f"ndcg@2 is {ours.mean():.4g}, the most popular items reach {ours.mean():.4g} "
        f"(difference +0, 95% interval 0 to 0 over {counted} queries)",
        f"recall@5 is {recall.mean():.4g}, floor 0.9 (short by {0.9 - recall.mean():.2g}, {interval(recall)})",
    ]
    assert summary.read(uri).failures == gates.validation_failures(uri)


def test_too_few_queries_are_said_and_decide_nothing(evaluate, model, queries):
    counted = oracle(queries, GOOD, 2)["queries"]
    settings = Evaluation(k=K, floors={"recall@5": 1.0}, max_regression={}, confidence=0.95, min_queries=counted + 1)
    blessing, uri = evaluate(model(GOOD), settings)
    assert not is_blessed(blessing)
    assert gates.validation_failures(uri) == [
        f"too few queries to judge by ({counted}; evaluation.min_queries is {counted + 1})"
    ]


def test_a_pushed_model_that_scored_nothing_does_not_block_a_better_one(evaluate, model):
    settings = Evaluation(k=K, max_regression={"recall@2": 0.1})
    blessing, uri = evaluate(model(GOOD), settings, baseline=model([b"discontinued"] * 5, version="17"))
    assert evaluation.read(uri).baseline_metrics["overall"]["recall@2"] == 0
    assert is_blessed(blessing)


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        ("empty", "nothing has been pushed yet"),
        ("signature", "version 17 in the push destination has no `evaluate` signature"),
        ("width", "version 17 in the push destination answers 2 items, and 5 are evaluated"),
        ("torn", "version 17 in the push destination does not answer today's queries: "),
    ],
)
def test_a_baseline_that_cannot_be_compared_counts_as_none(evaluate, model, tmp_path, wrong, note):
    if wrong == "signature":
        baseline = model(GOOD, version="17", signature="serving_default")
    elif wrong == "width":
        baseline = model(GOOD, version="17", width=2)
    else:
        baseline = standard_artifacts.Model()
        baseline.uri = str(tmp_path / "baseline")
        os.makedirs(baseline.uri)
        if wrong == "torn":
            os.makedirs(os.path.join(baseline.uri, "Format-Serving"))
            with open(os.path.join(baseline.uri, "Format-Serving", "saved_model.pb"), "wb") as file:
                file.write(b"torn")
            baseline.set_string_custom_property("version", "17")
    blessing, uri = evaluate(model(GOOD), Evaluation(k=K, max_regression={"ndcg@2": 0.0}), baseline=baseline)
    assert is_blessed(blessing)
    found = summary.read(uri)
    assert found.baseline_note.startswith(note)
    assert found.baseline_version == ""
    assert found.baseline_metrics == {}


def test_the_component_takes_what_the_executor_reads():
    component = Evaluator(
        examples=types.Channel(type=standard_artifacts.Examples),
        model=types.Channel(type=standard_artifacts.Model),
        baseline_model=types.Channel(type=standard_artifacts.Model),
        eval_config=gates.eval_config(Evaluation(), None),
        example_splits=["eval"],
        code="abc",
    )
    assert component.exec_properties["code"] == "abc"
    assert component.executor_spec.executor_class is executor.Executor
    assert component.outputs["blessing"].type is standard_artifacts.ModelBlessing
