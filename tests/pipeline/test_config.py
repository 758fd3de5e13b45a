"""The configuration refuses what it does not understand, in one line that names the key."""

import pytest

from modules.errors import UserError
from modules.settings import RENAMED
from pipeline.config import load

DEFAULT = "configs/movielens-100k.yaml"


def test_the_default_uses_every_kind_of_feature_the_data_set_has():
    config = load(DEFAULT)
    assert {f.column for f in config.features.query} == {
        "user_id", "age", "gender", "occupation", "timestamp", "history", "history_age"
    }  # fmt: skip
    assert {f.column for f in config.features.candidate} == {"item_id", "title", "genres", "release_year"}


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("training.epochs=3", lambda c: c.training.epochs, 3),
        ("features.query.age.dimension=8", lambda c: c.features.query[1].dimension, 8),
        ("features.query.1.dimension=9", lambda c: c.features.query[1].dimension, 9),
        ("split.strategy=random", lambda c: c.split.eval, 0.1),
        ("evaluation.floors={ndcg@10: 0.05}", lambda c: c.evaluation.floors, {"ndcg@10": 0.05}),
        ("output.root=elsewhere", lambda c: c.output.root, "elsewhere"),
        ("schema.path=null", lambda c: c.data_schema.path, None),
        ("evaluation.k=[5, 20]", lambda c: c.evaluation.max_regression, {"ndcg@5": 0.1}),
    ],
)
def test_set_replaces_a_key(override, read, expected):
    assert read(load(DEFAULT, [override])) == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=3", "training.epoch: unknown key"),
        ("training.completion=0.5", "training.completion: is now training.objective (masked_items, which was 1, or "),
        *((f"{old}=1", f"{old}: is now {new}; rename it") for old, new in RENAMED.items() if "(" not in new),
        ("training.epochs=three", "training.epochs: Input should be a valid integer"),
        ("training.epochs=0", "training.epochs: Input should be greater than or equal to 1, not 0"),
        ("tables.items.path=null", "tables.items.path: Input should be a valid string"),
        ("epochs", "expected key.path=value"),
        ("features.query.agee.dimension=2", "no element 'agee'"),
        ("features.query.age.encoding=magic", "features.query.1"),
        ("name=Has Spaces", "name: String should match pattern"),
        ("name.first=x", "single value"),
        ("split.strategy=sometimes", "'temporal', 'random', 'leave_last_out', 'column'"),
        ("evaluation.k=[10, 500]", "raise serving.k"),
        ("evaluation.floors={recall@11: 0.1}", "unknown metric 'recall@11'"),
        ("metadata.kind=mysql", "mysql needs host, database and user"),
        ("split={strategy: temporal, eval: 0.6, validation: 0.5}", "leave nothing to train on"),
        ("split={strategy: temporal, eval_from: 5}", "both validation_from and eval_from"),
        ("features.query.age.boundaries=[3, 1]", "boundaries must rise strictly"),
        ("features.candidate.title.column=age", "column 'age' is described twice"),
        ("features.candidate.title.column=relevant_items", "a name that the pipeline uses itself"),
        ("evaluation.slices=[{column: activity}]", "needs boundaries"),
        ("features.query=[{encoding: history_age}]", "history_age needs a history feature"),
        (
            "features.query=[{encoding: history}, {encoding: history_age}, {column: b, encoding: history_age}]",
            "there can be one history_age feature",
        ),
        ("features.candidate=[{column: a, encoding: history_age}]", "history_age belongs to the query tower"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, words):
    with pytest.raises(UserError) as caught:
        load(DEFAULT, [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected keys and values at the top"),
        ("- a\n- b\n", "expected keys and values at the top"),
        ("name: [unclosed", "not YAML"),
        ("name: only-a-name", "tables: is missing; features: is missing"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)) as caught:
        load(str(path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_says_what_to_give():
    with pytest.raises(UserError, match="give an existing file with --config"):
        load("configs/none.yaml")
