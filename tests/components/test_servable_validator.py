"""ServableValidator on real servables, good ones and ones that are broken in one way each."""

import json
from pathlib import Path
from types import SimpleNamespace

import plain_tensorflow
import pytest
from known_towers import DIMENSION, SERVING, save_servable
from tfx.components.pusher.executor import Executor as Pusher
from tfx.types import channel_utils, standard_artifacts

from components.scann_index_builder.component import IndexReport
from components.servable_validator import executor
from components.servable_validator.component import ServableValidator
from components.servable_validator.executor import Executor
from modules.retrieval import tuning
from modules.retrieval.scann import Scann, train_scann
from modules.retrieval.top_k import SearchParameters
from modules.servable.contract import CONTRACT_VERSION
from modules.settings import Serving

pytestmark = pytest.mark.slow


def _save(world, towers, folder: Path, index=None, layer="brute_force", **claims) -> Path:
    path = folder / "servable" / "Format-Serving"
    return save_servable(world, towers, path, SERVING, index, layer=layer, **claims)


def _validate(folder: Path, serving: Serving = SERVING, recall=1.0, target_met=True, timeout_seconds=120):
    """Runs the executor on what is in the folder; the blessing and its reasons."""
    latency = tuning.Percentiles(p50=1, p99=1)
    measured = tuning.MeasuredLayer(
        layer="stock", strategy="tree", partitions=12, partitions_to_search=1, reorder=None, recall=recall,
        latency_ms=tuning.Latency(single=latency, batch_64=latency), build_seconds=1, bytes=1,
    )  # fmt: skip
    report = tuning.IndexTuningReport(
        catalogue_size=150, dimension=DIMENSION, k=20, recall_k=10, recall_target=0.95, target_met=target_met,
        queries={}, chosen=measured, measured=[measured], tried=[],
    )  # fmt: skip
    (folder / "report").mkdir()
    (folder / "report" / tuning.REPORT_FILE).write_text(report.model_dump_json())
    model, index_report = standard_artifacts.Model(), IndexReport()
    model.uri, index_report.uri = str(folder / "servable"), str(folder / "report")
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(folder / "blessing")
    component = ServableValidator(
        servable=channel_utils.as_channel([model]),
        report=channel_utils.as_channel([index_report]),
        serving=serving,
        code="1",
        timeout_seconds=timeout_seconds,
    )
    Executor().Do(
        {executor.SERVABLE_KEY: [model], executor.REPORT_KEY: [index_report]},
        {executor.BLESSING_KEY: [blessing]},
        dict(component.exec_properties),
    )
    reasons = blessing.get_string_custom_property(executor.REASONS_KEY)
    return SimpleNamespace(
        blessed=Pusher().CheckBlessing({"infra_blessing": [blessing]}),
        reasons=reasons.split("\n") if reasons else [],
        files={file.name for file in (folder / "blessing").iterdir()},
        validation=json.loads((folder / "blessing" / executor.VALIDATION_FILE).read_text()),
    )


def test_a_good_servable_is_blessed(known_world, known_embedding, tmp_path):
    _save(known_world, known_embedding, tmp_path)
    verdict = _validate(tmp_path, SERVING.model_copy(update={"latency_p99_ms": 10_000.0}))
    assert verdict.reasons == []
    assert verdict.blessed and "INFRA_BLESSED" in verdict.files
    # Five requests for each of the nine signatures, a further batch of query embeddings, and one that says nothing.
    assert verdict.validation["requests"] == 47
    assert 0 < verdict.validation["latency_ms"]["p50"] <= verdict.validation["latency_ms"]["p99"]


@pytest.fixture
def forked(monkeypatch):
    """The process that tries a servable is forked from one that has imported TensorFlow."""
    monkeypatch.setattr(executor, "subprocess", plain_tensorflow)


@pytest.mark.usefixtures("forked")
def test_a_good_scann_servable_is_blessed(known_world, known_embedding, tmp_path):
    index = Scann(train_scann(known_world.catalogue().vectors, "tree"), SearchParameters(3, 50))
    _save(known_world, known_embedding, tmp_path, index, layer="scann")
    assert _validate(tmp_path).blessed


@pytest.mark.usefixtures("forked")
def test_a_scann_servable_that_claims_to_be_stock_is_refused(known_world, known_embedding, tmp_path):
    index = Scann(train_scann(known_world.catalogue().vectors, "tree"), SearchParameters(3, 50))
    _save(known_world, known_embedding, tmp_path, index, layer="stock", ops=())
    verdict = _validate(tmp_path)
    assert not verdict.blessed and "INFRA_NOT_BLESSED" in verdict.files
    assert "does not load" in verdict.reasons[0] and "Scann" in verdict.reasons[0]


@pytest.mark.usefixtures("forked")
def test_limits_that_are_missed_are_named_with_the_figures(known_world, known_embedding, tmp_path):
    _save(known_world, known_embedding, tmp_path)
    serving = SERVING.model_copy(update={"latency_p99_ms": 0.0001})
    verdict = _validate(tmp_path, serving, recall=0.75, target_met=False)
    assert not verdict.blessed
    recall, latency = verdict.reasons
    assert recall == "recall@10 of stock/tree is 0.7500 on eval queries, 0.2000 below index.recall_target 0.95"
    assert latency.startswith("latency p99 of single requests is") and latency.endswith("latency_p99_ms 0.0001")


@pytest.mark.usefixtures("forked")
def test_answers_of_another_shape_or_contract_are_refused(known_world, known_embedding, tmp_path):
    _save(known_world, known_embedding, tmp_path, k=21, return_columns=(), contract_version=CONTRACT_VERSION + 1)
    verdict = _validate(tmp_path)
    assert "was written under contract version 3, and this code reads 2" in verdict.reasons[0]
    assert (
        "serving_default: outputs are ['item_id', 'score', 'title'], expected ['item_id', 'score']" in verdict.reasons
    )
    assert not verdict.blessed


@pytest.mark.usefixtures("forked")
def test_a_catalogue_that_is_not_the_servables_is_refused(known_world, known_embedding, tmp_path):
    _save(known_world, known_embedding, tmp_path, catalogue_size=149)
    verdict = _validate(tmp_path)
    assert verdict.reasons[0] == "assets.extra/servable.json says 149 items, assets.extra/catalogue.parquet has 150"
    assert not verdict.blessed


@pytest.mark.usefixtures("forked")
def test_a_corrupt_servable_is_refused(known_world, known_embedding, tmp_path):
    path = _save(known_world, known_embedding, tmp_path)
    data = next((path / "variables").glob("variables.data*"))
    data.write_bytes(data.read_bytes()[:100])
    verdict = _validate(tmp_path)
    assert not verdict.blessed and "does not load" in verdict.reasons[0]


@pytest.mark.usefixtures("forked")
def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "servable" / "Format-Serving").mkdir(parents=True)
    verdict = _validate(tmp_path)
    assert not verdict.blessed and "assets.extra/servable.json is missing" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("raise SystemExit('out of memory')", "exit code 1): out of memory"),
        ("import time; time.sleep(60)", "did not load and answer within 2 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_refusal(body, words, tmp_path, monkeypatch):
    script = tmp_path / "replay.py"
    script.write_text(body)
    monkeypatch.setattr(executor.replay, "__file__", str(script))
    result = Executor().Replay(str(tmp_path), timeout_seconds=2)
    assert words in result["failures"][0] and result["latency_ms"] is None
