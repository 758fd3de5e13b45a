"""The configuration refuses what it does not understand, in one line that names the key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modules.errors import UserError
from pipeline import cli
from pipeline.config import Config, load

DEFAULT = "configs/movielens-100k.yaml"


def test_the_default_uses_every_kind_of_feature_the_data_set_has():
    config = load(DEFAULT)
    assert {f.column for f in config.features.query} == {
        "user_id", "age", "gender", "occupation", "timestamp", "history", "history_age"
    }  # fmt: skip
    assert {f.column for f in config.features.candidate} == {"item_id", "title", "genres", "release_year"}


@pytest.mark.parametrize(
    ("overrides", "recall_k"),
    [
        ((), 10),
        (("training.metric=recall", "training.metric_k=100"), 100),
        (("training.metric_k=50", "index.strategy=tree"), 50),
        (("training.metric_k=100", "index.recall_k=20"), 20),
    ],
)
def test_the_index_is_for_as_many_answers_as_the_model_is_chosen_for(overrides, recall_k):
    config = load(DEFAULT, overrides)
    assert config.index.recall_k == recall_k
    assert Config.model_validate(config.model_dump(by_alias=True)) == config
    # What was written remains what was written.
    assert ("recall_k" in config.model_dump(exclude_unset=True).get("index", {})) == (recall_k == 20)


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
        ("training.refit=no", lambda c: c.training.refit, False),
        ("training.learning_rate=1e-3", lambda c: c.training.learning_rate, 0.001),
        ("name=2020-13-45", lambda c: c.name, "2020-13-45"),
        ("tables.interactions.weight=007", lambda c: c.tables.interactions.weight, "007"),
        ("tables.interactions.weight=no", lambda c: c.tables.interactions.weight, "no"),
        ("tables.items.title=null", lambda c: c.tables.items.title, None),
        ("kubeflow.spec=2.0", lambda c: c.kubeflow.spec, "2.0"),
        (
            "kubeflow.resources={Trainer: {node_selector: {gpu: ''}}}",
            lambda c: c.kubeflow.resources["Trainer"].node_selector,
            {"gpu": ""},
        ),
        ("features.candidate.genres.separator=' '", lambda c: c.features.candidate[2].separator, " "),
    ],
)
def test_set_replaces_a_key(override, read, expected):
    assert read(load(DEFAULT, [override])) == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=3", "training.epoch: unknown key"),
        (
            'beam.options=["--runner=DirectRunner", "--direct_running_mode=in_memory", "--sdk_container_image=unused"]',
            "beam.options: --runner=DirectRunner is now runner: direct, --direct_running_mode=in_memory is now "
            "workers, --sdk_container_image=unused is now worker_image; give those beside `options`",
        ),
        ("beam.options=[verbose]", "beam.options: 'verbose' is no option; write --name=value"),
        ("beam.runner=storm", "'direct', 'portable', 'flink', 'spark' or 'dataflow', not 'storm'"),
        ("beam.runner=flink", "beam: flink needs worker_pool or worker_image"),
        ("beam={runner: flink, worker_pool: h:1, worker_image: i}", "beam: flink needs worker_pool or worker_image"),
        ("beam={runner: spark, worker_pool: h:1}", "beam: job_endpoint is missing, which spark needs"),
        ("beam={runner: spark, worker_pool: h:1, job_endpoint: h}", "beam.job_endpoint: 'h' is no address"),
        ("beam={worker_pool: h:70000}", "beam.worker_pool: 'h:70000' is no address"),
        (
            "beam={runner: portable, worker_pool: h:1, job_endpoint: h:1, workers: 2}",
            "beam: workers: Beam's own job service asks for one worker, not 2; remove it",
        ),
        ("beam.job_endpoint=h:1", "beam: job_endpoint is nothing for the runner direct"),
        ("beam={runner: dataflow, region: r, worker_image: i, temp_location: gs://b}", "beam: project is missing"),
        (
            "beam={runner: dataflow, project: p, region: r, worker_image: i, temp_location: /tmp}",
            "beam: temp_location: Dataflow cannot write to /tmp; give a gs:// path",
        ),
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
        # Numbers that are none, not finite, or that no machine has the memory for.
        ("training.epochs=yes", "training.epochs: Input should be a valid integer"),
        (f"training.epochs={'9' * 5000}", "training.epochs: Unable to parse input string as an integer"),
        ("training.learning_rate=.inf", "training.learning_rate: Input should be a valid number"),
        ("training.learning_rate=nan", "training.learning_rate: Input should be a finite number, not 'nan'"),
        ("training.weight_decay=1e400", "training.weight_decay: Input should be a finite number"),
        ("training.batch_size=1000000000", "training.batch_size: Input should be less than or equal to 1000000"),
        ("training.seed=-1", "training.seed: Input should be greater than or equal to 0, not -1"),
        ("training.seed=4294967296", "training.seed: Input should be less than or equal to 2000000000"),
        ("index.seed=18446744073709551616", "index.seed: Input should be less than or equal to"),
        ("split={strategy: random, seed: -3}", "split.random.seed: Input should be greater than or equal to 0"),
        ("model.dimension=1000000000000", "model.dimension: Input should be less than or equal to 16384"),
        ("model.query_layers=[0]", "model.query_layers.0: Input should be greater than or equal to 1"),
        ("model.history_encoder=gru", "model.history_encoder"),
        (
            "model={encoder_width: 100, encoder_heads: 3}",
            "encoder_heads: 3 does not divide encoder_width, which is 100",
        ),
        ("model.encoder_dropout=1", "model.encoder_dropout: Input should be less than 1"),
        ("features.query.age={column: age, encoding: bucketized, buckets: 1000000000}", "features.query.1"),
        (
            "features.query.age={column: age, encoding: hash, buckets: 100000000, dimension: 1000}",
            "lower one of the two",
        ),
        (
            "features.query.age={column: age, encoding: hash, buckets: 20000000, functions: 2, dimension: 32}",
            "features.query.1.hash: 20000000 buckets for each of 2 functions of dimension 32 are more than "
            "1,073,741,824 numbers; lower one of the three",
        ),
        (
            "features.query.age={column: age, encoding: hash, buckets: 9, functions: 0}",
            "features.query.1.hash.functions: Input should be greater than or equal to 1, not 0",
        ),
        (
            "features.query.age={column: age, encoding: hash, buckets: 9, functions: 9}",
            "features.query.1.hash.functions: Input should be less than or equal to 8, not 9",
        ),
        (
            "features.query.age={column: age, encoding: hash, buckets: 9, functions: two}",
            "features.query.1.hash.functions: Input should be a valid integer",
        ),
        (
            "features.query.age.boundaries=[]",
            "features.query.1.bucketized.boundaries: Tuple should have at least 1 item",
        ),
        (
            "features.query.age.boundaries=[.nan]",
            "features.query.1.bucketized.boundaries.0: Input should be a valid number",
        ),
        ("features.query.age.boundaries=[1e39]", "features.query.1.bucketized.boundaries.0"),
        ("evaluation.k=[0]", "evaluation.k.0: Input should be greater than or equal to 1, not 0"),
        ("evaluation.k=[]", "evaluation.k: Tuple should have at least 1 item"),
        ("evaluation.k=[10, 10]", "evaluation.k: 10 is there twice"),
        ("evaluation.floors={ndcg@10: nan}", "evaluation.floors.ndcg@10: Input should be a finite number"),
        ("evaluation.floors={ndcg@10: 5}", "evaluation.floors.ndcg@10: Input should be less than or equal to 1"),
        (
            "evaluation.max_regression={ndcg@10: -0.1}",
            "evaluation.max_regression.ndcg@10: Input should be greater than",
        ),
        (
            "evaluation.confidence=0.05",
            "evaluation.confidence: Input should be greater than or equal to 0.5, not 0.05",
        ),
        ("evaluation.confidence=95", "evaluation.confidence: Input should be less than or equal to 0.9999, not 95"),
        ("evaluation.confidence=nan", "evaluation.confidence: Input should be a finite number"),
        ("evaluation.confidence=high", "evaluation.confidence: Input should be a valid number"),
        ("evaluation.min_queries=1", "evaluation.min_queries: Input should be greater than or equal to 2, not 1"),
        ("evaluation.min_queries=2.5", "evaluation.min_queries: Input should be a valid integer"),
        ("evaluation.slices=[{column: age, boundaries: []}]", "evaluation.slices.0.boundaries"),
        ("evaluation.slices=[{column: age, boundaries: [nan]}]", "evaluation.slices.0.boundaries.0"),
        (
            "evaluation.slices=[{column: age, boundaries: [3, 3]}]",
            "evaluation.slices.0.boundaries: boundaries must rise",
        ),
        ("evaluation.slices=[{column: age}, {column: age, boundaries: [3]}]", "column 'age' is there twice"),
        ("metadata.port=70000", "metadata.port: Input should be less than or equal to 65535"),
        # Texts where something must be said, and lists that say it twice.
        ("output.root=''", "output.root: String should have at least 1 character"),
        ('output.push="a\\0b"', "--set output.push: line 1: a text with a character that no file can hold"),
        ('tables.items.path="a\\nb"', "tables.items.path: 'a\\nb' has a character that cannot be printed"),
        ("tables.interactions.user=''", "tables.interactions.user: String should have at least 1 character"),
        ("features.candidate.genres.separator=''", "separator: String should have at least 1 character"),
        ("serving.return_columns=[title, title]", "serving.return_columns: 'title' is there twice"),
        ("serving.filter_columns=[genres, genres]", "serving.filter_columns: 'genres' is there twice"),
        (
            "serving.max_per_value={genres: 0}",
            "serving.max_per_value.genres: Input should be greater than or equal to 1, not 0",
        ),
        (
            "serving.max_per_value={title: 3}",
            "serving.max_per_value: 'title' is not one of serving.filter_columns; add it to them",
        ),
        ("serving.max_per_value=3", "serving.max_per_value: expected keys and values"),
        ("serving.max_per_value={genres: few}", "serving.max_per_value.genres: Input should be a valid integer"),
        ("tuner.search={model.mask_rate: [.nan]}", "tuner.search.model.mask_rate.0"),
        ("model.exploration=-1", "model.exploration"),
        ("model.exploration=21", "model.exploration"),
        ("model.exploration=.nan", "model.exploration"),
        ("model={exploration: 1, normalize: true}", "exploration: vectors of length 1 have no bias for it"),
        # One column in two roles.
        ("tables.interactions.user=item_id", "tables.interactions: user and item are both column 'item_id'"),
        ("tables.interactions.timestamp=user_id", "tables.interactions: user and timestamp are both column 'user_id'"),
        ("tables.interactions.weight=timestamp", "tables.interactions: timestamp and weight are both"),
        ("split={strategy: column, column: user_id}", "split.column: 'user_id' is tables.interactions.user already"),
        ("serving.known_users=-1", "serving.known_users: "),
        ("features.query.user_id={column: user_id, encoding: log1p}", "the user's id 'user_id' must be one text"),
        ("features.query.timestamp={column: timestamp, encoding: log1p}", "encode it as timestamp"),
        # Places that are none.
        ("features.query.².dimension=3", "--set features.query.².dimension: the list has no element '²'"),
        ("features.query.99999999999999999999=3", "the list has no element"),
        (".".join("a" * 50) + "=3", "deeper than 32 keys"),
        (f"name={'[' * 3000}", "--set name: line 1: nested deeper than 32 levels"),
        ("name={a: 1, a: 2}", "key 'a' is there twice"),
        ("name=!!binary aGk=", "tags such as tag:yaml.org,2002:binary are not read"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_exit_code_2(capsys, override, words):
    with pytest.raises(UserError) as caught:
        load(DEFAULT, [override])
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert cli.main(["run", "--config", DEFAULT, "--set", override]) == 2
    assert capsys.readouterr() == ("", f"twotower: {caught.value}\n")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("[{encoding: history, max_length: 257}]", "max_length: 257, but a transformer reads at most 256 items"),
        ("[{column: age, encoding: normalized}]", "but there is no history to encode"),
    ],
)
@pytest.mark.parametrize("encoder", ["auto", "transformer"])
def test_a_transformer_needs_a_history_and_no_longer_one_than_it_can_read(encoder, query, words):
    overrides = [f"features.query={query}", "evaluation.slices=[]"]
    load(DEFAULT, overrides)
    with pytest.raises(UserError, match=words) as caught:
        load(DEFAULT, [*overrides, f"model.history_encoder={encoder}"])
    assert f"model.history_encoder: {encoder}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected keys and values at the top"),
        ("- a\n- b\n", "expected keys and values at the top"),
        ("name: [unclosed", "not YAML"),
        ("name: only-a-name", "tables: is missing; features: is missing"),
        ("name: a\nname: b\n", "line 2: key 'name' is there twice, first in line 1; remove one"),
        ("tables:\n  items: {path: a, path: b}\n", "line 2: key 'path' is there twice"),
        ("name: größe".encode("utf-16"), "line 1 is not UTF-8; save the file as UTF-8"),
        ("# Filme\n# für alle\n".encode("latin-1"), "line 2 is not UTF-8"),
        (b"name: a\0b", "not YAML"),
        ("a: " + "[" * 3000, "line 1: nested deeper than 32 levels"),
        ("a: &a\n  b: *a\n", "line 2: *a is inside of what it stands for"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{n}: &{n} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n" for p, n in zip("abcdefg", "bcdefgh", strict=True)
            ),
            "more than 50,000 values",
        ),
        ("name: !!python/object:os.system x", "tags such as"),
        ('name: "\\U00110000"', "not YAML"),
        (f"%YAML 1.{'9' * 5000}\n---\nname: x", "not YAML"),
        ("[a]: 1\n", "line 1: a key must be a word"),
        ("~: 1\n", "line 1: a key must be a word"),
        ("1: 1\n", "1: unknown key"),
        ('"a\\nb": 1\n', "a\\nb: unknown key"),
        ("name: a\n---\nname: b\n", "expected a single document"),
        ("x" * 300_000, "larger than 256 KiB"),
        ("\n".join(f"k{n}: 1" for n in range(1000)), "and 998 more"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_file_is_one_line_and_exit_code_2(tmp_path, capsys, text, words):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(["run", "--config", str(path)]) == 2
    printed, message = capsys.readouterr()
    assert message.startswith(f"twotower: configuration {path}: ") and message.count("\n") == 1
    assert words in message and printed == ""


def test_an_alias_stands_for_what_is_written_there(tmp_path):
    """And a key that is replaced is replaced in one place."""
    path = tmp_path / "config.yaml"
    path.write_text(
        Path(DEFAULT).read_text(encoding="utf-8") + "  resources: {Trainer: &big {cpu: 4}, Transform: *big}\n"
    )
    resources = load(str(path), ["kubeflow.resources.Trainer.cpu=8"]).kubeflow.resources
    assert (resources["Trainer"].cpu, resources["Transform"].cpu) == (8, 4)


@pytest.mark.parametrize(
    ("path", "words"),
    [("a\0b", "a\\x00b': has a NUL character"), (".", "Is a directory"), ("a\nb", "a\\nb: No such file")],
)
def test_a_path_that_is_no_file_is_one_line(capsys, path, words):
    assert cli.main(["run", "--config", path]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


def test_a_shell_sees_one_line_and_exit_code_2():
    arguments = ["run", "--set", "features.query.².dimension=3"]
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "twotower: --set features.query.².dimension: the list has no element '²'\n"


def test_a_missing_file_says_what_to_give():
    with pytest.raises(UserError, match="give an existing file with --config"):
        load("configs/none.yaml")
