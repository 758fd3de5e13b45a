"""The limits of a request: their flags, and what is counted before a message is decoded."""

from __future__ import annotations

import dataclasses

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2

from serving.development_server import admission, errors, limits
from serving.development_server.admission import Admission
from serving.development_server.limits import Limits


def invoked(*arguments: str) -> tuple[Limits | None, str]:
    """The limits that a command with these arguments has, and what it complains of."""
    found = []

    @click.command()
    @limits.options
    def command(**values: int) -> None:
        found.append(Limits(**values))

    outcome = CliRunner().invoke(command, list(arguments))
    assert outcome.exit_code == (0 if found else 2)
    return (found[0] if found else None), outcome.output


def test_every_limit_has_a_flag_with_its_default():
    assert invoked()[0] == Limits()
    for number, field in enumerate(dataclasses.fields(Limits), 1):
        changed = dataclasses.replace(Limits(), **{field.name: number})
        assert invoked(limits.flag(field.name), str(number))[0] == changed


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", str(2**31), "9" * 5000])
def test_a_limit_that_is_none_is_refused_with_its_flag(value: str):
    found, complaint = invoked("--max-batch", value)
    assert found is None and "--max-batch" in complaint


def test_exclusions_filters_and_explained_items_have_limits_of_their_own():
    chosen = Limits(max_width=1, max_exclusions=2, max_filter_values=3, max_explained=5, max_values=4)
    names = ("history", "exclude", "filter_genres", "excluded", "explain")
    assert [chosen.width(name)[0] for name in names] == [1, 2, 1, 1, 1]
    assert [chosen.size(name)[0] for name in names] == [4, 4, 3, 4, 5]


def message(values: int, inputs: int, dimensions: int) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "model"
    for number in range(inputs):
        tensor = request.inputs[f"input {number}"]
        tensor.dtype = types_pb2.DT_STRING
        for _ in range(dimensions):
            tensor.tensor_shape.dim.add().size = 1
        tensor.string_val.extend([b"a value of some length"] * values)
    return request


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    values=st.integers(0, 3000), inputs=st.integers(1, 4), dimensions=st.integers(0, 3), budget=st.integers(1, 12_000)
)
def test_fields_are_counted_as_the_decoder_would_make_them(values: int, inputs: int, dimensions: int, budget: int):
    request = message(values, inputs, dimensions)
    # The spec; each input with its name, tensor, dtype, shape, dimensions, and values.
    fields = 1 + inputs * (1 + 2 + 1 + 1 * (dimensions > 0) + dimensions + values)
    body = request.SerializeToString()
    most = budget + admission._OTHER_FIELDS
    gate = Admission(dataclasses.replace(Limits(), max_values=budget))
    if len(body) > admission._SCANNED_BYTES and fields > most:
        with pytest.raises(errors.ServingError, match="more values than this server takes"):
            gate.check_fields(body)
    else:
        gate.check_fields(body)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=200), place=st.integers(0, 70_000), cut=st.integers(0, 100))
def test_bytes_that_are_no_message_are_left_to_the_decoder(data: bytes, place: int, cut: int):
    body = message(3000, 1, 1).SerializeToString()
    body = body[:place] + data + body[place + cut :]
    with_end = body[: len(body) - cut]
    try:
        Admission(Limits()).check_fields(with_end)
    except errors.ServingError as error:
        assert "not served" in error.message or "more values" in error.message


@pytest.mark.parametrize("text", ["x" * 10**6, "é" * 10**6, "\n" * 10**6, "🙂" * 10**6])
def test_a_message_fits_among_the_headers_and_keeps_its_end(text: str):
    error = errors.invalid(f"first {text} last")
    assert error.message.startswith("first ") and error.message.endswith(" last")
    escaped = sum(1 if 32 <= byte < 127 else 3 for byte in error.message.encode())
    assert escaped < 7000
