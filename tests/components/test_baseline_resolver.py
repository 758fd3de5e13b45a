"""The BaselineResolver on real push destinations."""

import os

import pytest
import tensorflow as tf
from pushed_versions import push
from tfx.types import standard_artifacts
from tfx.utils import path_utils

from components.baseline_resolver import executor
from components.baseline_resolver.component import BaselineResolver


@pytest.fixture
def resolve(tmp_path):
    """Runs the executor; returns the Model artifact."""

    def run(destination, stamp="today", version=""):
        baseline = standard_artifacts.Model()
        baseline.uri = str(tmp_path / "baseline")
        os.makedirs(baseline.uri, exist_ok=True)
        executor.Executor().Do(
            {},
            {executor.BASELINE_KEY: [baseline]},
            {
                executor.PUSH_DESTINATION_KEY: destination,
                executor.PIPELINE_STAMP_KEY: stamp,
                executor.BASELINE_VERSION_KEY: version,
            },
        )
        return baseline

    return run


def served_by(baseline):
    with open(os.path.join(path_utils.serving_model_path(baseline.uri), "saved_model.pb")) as file:
        return file.read()


def test_without_a_pushed_model_the_artifact_is_empty(resolve, tmp_path):
    baseline = resolve(str(tmp_path / "served"))
    assert baseline.get_int_custom_property("present") == 0
    assert baseline.get_string_custom_property("version") == ""
    assert os.listdir(baseline.uri) == []


def test_the_artifact_holds_the_model_even_when_the_version_is_deleted(resolve, tmp_path):
    served = str(tmp_path / "served")
    push(served, "1", stamp="yesterday")
    push(served, "2", stamp="today")
    baseline = resolve(served)
    assert baseline.get_int_custom_property("present") == 1
    assert baseline.get_string_custom_property("version") == "1"
    tf.io.gfile.rmtree(os.path.join(served, "1"))
    assert served_by(baseline) == "model 1"
    assert os.path.exists(os.path.join(baseline.uri, "Format-Serving", "variables", "variables.index"))


def test_the_version_that_was_resolved_before_the_run_is_kept(resolve, tmp_path):
    served = str(tmp_path / "served")
    for version in ("1", "2"):
        push(served, version, stamp="yesterday")
    assert served_by(resolve(served, version="1")) == "model 1"


def test_a_version_that_was_deleted_meanwhile_is_resolved_anew(resolve, tmp_path):
    served = str(tmp_path / "served")
    push(served, "1", stamp="yesterday")
    assert served_by(resolve(served, version="2")) == "model 1"


def test_where_hard_links_are_refused_it_copies(resolve, tmp_path, monkeypatch):
    def refused(source, target):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refused)
    push(str(tmp_path / "served"), "1")
    assert served_by(resolve(str(tmp_path / "served"))) == "model 1"


def test_the_baseline_is_part_of_the_cache_key():
    resolver = BaselineResolver(push_destination="served/model", pipeline_stamp="today", baseline_version="1")
    assert resolver.exec_properties == {
        "push_destination": "served/model",
        "pipeline_stamp": "today",
        "baseline_version": "1",
    }
    assert resolver.outputs["baseline"].type is standard_artifacts.Model
