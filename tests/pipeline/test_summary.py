"""What a person reads at the end of a run: ± beside every figure that has one, slices, and what an old run lacks."""

import datetime
import io
import json

import pytest

from modules.settings import Slice
from pipeline import summary, terminal
from pipeline.config import load
from pipeline.runs import Artifact, Run, Stage

METRICS = {
    "overall": {"ndcg@10": 0.1360, "popular_ndcg@10": 0.0449, "ndcg_lift@10": 0.0911, "recall@10": 0.2471,
                "popular_recall@10": 0.0859, "recall_lift@10": 0.1612, "precision@10": 0.0247,
                "recall_with_seen@10": 0.0817, "coverage@10": 0.4364, "popular_share@10": 0.5997, "queries": 943.0},
    "gender=F": {"ndcg@10": 0.1312, "ndcg_lift@10": -0.0204, "queries": 273.0},
    "age=56+": {"ndcg@10": 0.0923, "ndcg_lift@10": 0.0304, "queries": 12.0},
    "occupation=none": {"ndcg@10": None, "ndcg_lift@10": None, "queries": 0.0},
}  # fmt: skip
HALF_WIDTHS = {
    "overall": {"ndcg@10": 0.0161, "popular_ndcg@10": 0.0093, "ndcg_lift@10": 0.0172, "recall@10": 0.0276,
                "popular_recall@10": 0.0179, "recall_lift@10": 0.0298, "precision@10": 0.0028,
                "recall_with_seen@10": 0.0175, "popular_share@10": 0.0151},
    "gender=F": {"ndcg@10": 0.0301, "ndcg_lift@10": 0.0303},
    "age=56+": {"ndcg@10": 0.1532, "ndcg_lift@10": 0.1604},
    "occupation=none": {"ndcg@10": None, "ndcg_lift@10": None},
}  # fmt: skip
INTERVALS = {
    "confidence": 0.95,
    "half_widths": HALF_WIDTHS,
    "baseline_differences": {},
    "baseline_difference_half_widths": {},
}
COMPARED = {
    "baseline_version": "17",
    "baseline_metrics": {"overall": {"ndcg@10": 0.1301}},
    "baseline_differences": {"overall": {"ndcg@10": 0.0059, "recall@10": -0.0102}, "gender=F": {"ndcg@10": -0.0011}},
    "baseline_difference_half_widths": {
        "overall": {"ndcg@10": 0.0051, "recall@10": 0.0113},
        "gender=F": {"ndcg@10": 0.0077},
    },
}


@pytest.fixture
def summarized(tmp_path):
    """The summary of a run whose Evaluator wrote this, and how it prints at some width."""

    def run(**evaluation):
        written = {"metrics": METRICS, "failures": [], "baseline_version": "", "baseline_note": ""} | evaluation
        (tmp_path / "summary.json").write_text(json.dumps(written))
        artifact = Artifact(1, "evaluation", "ModelEvaluation", str(tmp_path), {})
        stage = Stage("Evaluator", "done", 1.0, (), (artifact,))
        config = load("configs/movielens-100k.yaml")
        assert config.evaluation.slices[0] == Slice(column="gender")
        return summary.summarize(config, Run("2026-01-01", datetime.datetime(2026, 1, 1), (stage,)))

    return run


def printed(outcome, width=100):
    console = terminal.console(io.StringIO())
    console.width = width
    summary.render(outcome, console)
    summary.render_slices(outcome, console)
    return console.file.getvalue().splitlines()


def row(lines, label):
    [line] = [line for line in lines if line.startswith(label)]
    return line.removeprefix(label).strip()


@pytest.mark.parametrize(
    ("written", "words"),
    [({"criterion": "recall@100"}, "recall@100"), ({"criterion": "ndcg@10"}, "NDCG@10"), ({}, "NDCG")],
)
def test_the_metric_that_validation_chose_by_is_said(summarized, written, words):
    outcome = summarized(**INTERVALS)
    outcome["training"] = {"epochs": 18, "seconds": 70.2, "encoders": {"mean": 0.25, "transformer": 0.5}} | written
    lines = printed(outcome)
    assert row(lines, "training ") == f"18 epochs by {words} on validation, 70 s"
    assert row(lines, "history encoder ") == f"transformer, by {words}: mean 0.2500, transformer 0.5000"


def test_every_figure_of_a_mean_has_its_half_width_beside_it(summarized):
    lines = printed(summarized(**INTERVALS))
    assert "quality on eval, 943 queries; ± at 95% confidence" in [line.strip() for line in lines]
    assert row(lines, "NDCG ") == "0.1360 ±0.0161"
    assert row(lines, "recall  ") == "0.2471 ±0.0276"
    assert [line.split()[-2:] for line in lines if line.startswith("  above most popular")] == [
        ["+0.0911", "±0.0172"],
        ["+0.1612", "±0.0298"],
    ]
    assert row(lines, "share of the catalogue shown") == "0.4364"
    assert not any("last pushed" in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_slices_have_theirs_and_say_where_queries_are_too_few(summarized):
    outcome = summarized(**INTERVALS)
    assert outcome["too_few_queries"] == ["age=56+", "occupation=none"]
    lines = printed(outcome)
    assert row(lines, "slices ").startswith("3; 2 with fewer than 30 queries; `twotower runs 2026-01-01`")
    assert row(lines, "gender=F").split() == ["273", "0.1312", "±0.0301", "-0.0204", "±0.0303"]
    assert row(lines, "age=56+").split() == ["too", "few:", "12", "0.0923", "±0.1532", "+0.0304", "±0.1604"]
    assert row(lines, "occupation=none").split() == ["too", "few:", "0"]


def test_what_the_last_pushed_model_is_compared_with_is_a_row_and_a_column(summarized):
    outcome = summarized(**INTERVALS | COMPARED)
    assert outcome["baseline"]["differences"]["overall"]["ndcg@10"] == 0.0059
    assert outcome["baseline"]["difference_half_widths"]["overall"]["ndcg@10"] == 0.0051
    lines = printed(outcome)
    assert [line.split()[-2:] for line in lines if line.startswith("  above the last pushed")] == [
        ["+0.0059", "±0.0051"],
        ["-0.0102", "±0.0113"],
    ]
    assert row(lines, "gender=F").endswith("-0.0011 ±0.0077")
    assert max(map(len, lines)) <= 100


def test_scripts_find_half_widths_where_they_find_figures(summarized):
    outcome = json.loads(json.dumps(summarized(**INTERVALS)))
    assert outcome["metrics"] == METRICS
    assert outcome["half_widths"]["overall"]["recall@10"] == HALF_WIDTHS["overall"]["recall@10"]
    assert (outcome["confidence"], outcome["min_queries"]) == (0.95, 30)


def test_a_run_from_before_there_were_intervals_prints_as_it_did(summarized):
    lines = printed(summarized())
    assert "quality on eval, 943 queries" in [line.strip() for line in lines]
    assert row(lines, "NDCG ") == "0.1360"
    assert "±" not in "".join(lines)
