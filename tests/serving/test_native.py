"""The native probe: C++ answers what Python answers, the clock adds up, and what is wrong is said in one line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tiny_models
from e2e_runs import Small
from tensorflow_serving.apis import prediction_log_pb2

from benchmarks.serving import __main__ as benchmark
from benchmarks.serving import native, requests
from modules.servable import warmup
from modules.servable.contract import read_servable
from serving.native import probe

pytestmark = pytest.mark.slow

Answer = tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]
TINY = {
    "serving_default": [
        {"x": tf.constant([0.5, -2.0, 7.0]), "s": tf.constant([b"", b"\xff\x00", "é".encode()])},
        {"x": tf.constant([1.5]), "s": tf.constant(["one"])},
    ],
    "total": [{"n": tf.constant(4, tf.int64)}, {"n": tf.constant(-1, tf.int64)}],
}


@pytest.fixture(scope="module")
def binary() -> Path:
    try:
        return probe.build()
    except probe.NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def tiny(binary: Path, tmp_path: Path) -> Path:
    """A version whose signatures have every kind of value, one of them without a batch."""
    version = tiny_models.push(tmp_path / "tiny", 3)
    warmup.write(str(version), "tiny", TINY)
    return version


def arrays(values: Any) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(value) for name, value in values.items()}


def answered(file: Path) -> Iterator[Answer]:
    """Signature, request and answer of each record."""
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record).predict_log
        yield log.request.model_spec.signature_name, arrays(log.request.inputs), arrays(log.response.outputs)


def assert_as_in_python(version: Path, answers: Path) -> list[Answer]:
    """Compares answers with those of `tf.saved_model.load`; strings and whole numbers are equal, others to 1e-5."""
    model = tf.saved_model.load(str(version))
    records = list(answered(answers))
    for signature, request, found in records:
        inputs = {n: tf.constant(v, tf.string if v.dtype.kind == "O" else None, v.shape) for n, v in request.items()}
        expected = {name: value.numpy() for name, value in model.signatures[signature](**inputs).items()}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            if value.dtype.kind == "f":
                np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{signature} {name}")
            else:
                np.testing.assert_array_equal(found[name], value, f"{signature} {name}")
    return records


def test_every_signature_of_a_pushed_version_answers_as_in_python(binary: Path, small: Small, tmp_path: Path):
    version = Path(small.outcome.answer["pushed"])
    report = probe.run(version, (1, 2), seconds=0, answers=tmp_path / "answers")
    records = assert_as_in_python(version, tmp_path / "answers")

    replayed = warmup.read(str(version))
    assert [name for name, _, _ in records] == [name for name, of_name in replayed.items() for _ in of_name]
    for (_, found, _), request in zip(records, (r for of_name in replayed.values() for r in of_name), strict=True):
        for name, value in request.items():
            np.testing.assert_array_equal(found[name], value.numpy(), name)
    assert report.requests == len(records)
    kinds = {(name, len(next(iter(request.values())))) for name, request, _ in records}
    assert {name for name, _ in kinds} == set(read_servable(str(version)).signatures)
    assert {(t.signature, t.batch, t.threads) for t in report.timings} == {(*k, n) for k in kinds for n in (1, 2)}
    assert all(timing.calls >= timing.threads for timing in report.timings)


def test_values_of_every_dtype_come_through(tiny: Path, tmp_path: Path):
    report = probe.run(tiny, (1,), seconds=0, answers=tmp_path / "answers")
    (_, request, answer), _, *totals = assert_as_in_python(tiny, tmp_path / "answers")
    assert request["s"].tolist() == answer["raw_bytes"].tolist() == [b"", b"\xff\x00", "é".encode()]
    assert [totals[0][2]["total"], totals[1][2]["total"]] == [7, 2]
    assert {(t.signature, t.batch) for t in report.timings} == {
        ("serving_default", 3),
        ("serving_default", 1),
        ("total", 1),
    }


def test_calls_fill_the_time_of_their_threads(binary: Path, tiny: Path):
    command = [str(binary), str(tiny), "--threads=1,2", "--seconds=0.2", "--signature=total"]
    loads = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["loads"]
    assert [load["threads"] for load in loads] == [1, 2]
    for load in loads:
        assert {load["signature"], load["batch"]} == {"total", 1} and load["seconds"] >= 0.2
        assert 0.2 < sum(load["milliseconds"]) / 1_000 / load["seconds"] / load["threads"] <= 1
        timing = probe.timing(**load)
        assert timing.calls == len(load["milliseconds"]) == pytest.approx(timing.per_second * load["seconds"], rel=0.01)
        assert timing.p50_ms == pytest.approx(np.median(load["milliseconds"]), abs=0.001)
        assert timing.p50_ms <= timing.p95_ms <= timing.p99_ms <= max(load["milliseconds"]) + 0.001


def test_the_table_and_its_json_have_the_same_figures(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "native.json"
    assert native.main([str(tiny), "--threads", "2", "--seconds", "0", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["version"] == "3" and result["requests"] == 4 and len(result["timings"]) == 6
    for timing in result["timings"]:
        line = next(
            line for line in printed.splitlines() if line.split()[:2] == [timing["signature"], str(timing["batch"])]
        )
        assert f"{timing['p50_ms']:.2f}" in line and f"{timing['p99_ms']:.2f}" in line


def test_the_benchmark_of_the_server_has_the_clock_of_the_servable(tiny: Path):
    levels, missing = benchmark.native_levels(tiny, seconds=0)
    assert [(level.interface, level.clients) for level in levels] == [("native", 1), ("native", 8), ("native", 64)]
    assert not missing and all(0 < level.p50_ms <= level.p99_ms for level in levels)


@pytest.mark.usefixtures("binary")
def test_requests_are_timed_by_their_history_and_beside_the_tutorials_model(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    version = small.outcome.answer["pushed"]
    assert requests.main([version, "--histories", "1,5", "--rounds", "1", "--seconds", "0"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    limited = "history of 1, at most 2 of genres"
    assert [line.split("  ")[0] for line in lines] == [requests.TUTORIAL, "history of 1", "history of 5", limited]
    assert all(float(figure) > 0 for line in lines for figure in line.split()[-4:])
    with pytest.raises(SystemExit, match="100000 is more than the catalogue's"):
        requests.main([version, "--histories", "100000"])
    assert requests.main([version, "--catalogue", "150", "--rounds", "1", "--seconds", "0"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    kinds = [requests.BOTH, requests.SEARCH, requests.TOWER, "whole request"]
    assert [line.split("  ")[0] for line in lines] == kinds
    with pytest.raises(SystemExit, match="79 is less than the 80 items"):
        requests.main([version, "--catalogue", "79"])

    items = [f"item {n}" for n in range(50)]
    requests.export_tutorial(tmp_path / "tutorial", items, k=5)
    served = tf.saved_model.load(str(tmp_path / "tutorial"))
    answer = served.signatures["serving_default"](user_id=tf.constant(["7", "never seen"]))
    vectors, queries = served._candidates.numpy(), served.query_model(tf.constant(["7", "never seen"])).numpy()
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    assert answer["ids"].numpy().tolist() == [[items[row].encode() for row in rows] for rows in best]


def change(version: Path, signature: str, inputs: dict[str, tf.Tensor]) -> None:
    warmup.write(str(version), "tiny", {signature: [inputs]})


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda v: (v / "saved_model.pb").unlink(), "does not load: Could not find SavedModel"),
        (lambda v: (v / warmup.WARMUP_PATH).unlink(), "tf_serving_warmup_requests: .*No such file"),
        (lambda v: (v / warmup.WARMUP_PATH).write_bytes(b""), "has no requests"),
        (lambda v: change(v, "other", {"n": tf.constant(1)}), "other, which is no signature"),
        (lambda v: change(v, "total", {"m": tf.constant(1)}), "total has no input m"),
        (lambda v: change(v, "total", {"n": tf.constant("1")}), "total: .*string"),
        (lambda v: damage(v / warmup.WARMUP_PATH), "tf_serving_warmup_requests: corrupted record"),
    ],
)
def test_a_version_that_cannot_be_probed_is_one_line(tiny: Path, break_it: Any, words: str):
    break_it(tiny)
    with pytest.raises(SystemExit, match=words) as ended:
        native.main([str(tiny), "--seconds", "0"])
    assert "\n" not in str(ended.value)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_without_a_compiler_it_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(probe, "BUILD", tmp_path / "build")
    with pytest.raises(SystemExit, match=r"^there is no C\+\+ compiler here: no-such-compiler is not found"):
        native.main([str(tmp_path)])
    levels, missing = benchmark.native_levels(tmp_path, seconds=0)
    assert levels == [] and missing.startswith("there is no C++ compiler here")


@pytest.mark.usefixtures("binary")
def test_what_a_compiler_refuses_is_a_line_and_leaves_no_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "probe.cc"
    source.write_text("int main() { return missing; }\n")
    monkeypatch.setattr(probe, "SOURCE", source)
    with pytest.raises(probe.ProbeError, match=r"does not compile probe\.cc: .*missing"):
        probe.build(tmp_path / "build")
    assert not list((tmp_path / "build").iterdir())
