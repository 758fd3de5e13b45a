"""What is kept of DoFns' signatures is what Beam finds each time by itself."""

import inspect

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import core, userstate

from modules import beam_signatures

SEEN = userstate.BagStateSpec("seen", VarIntCoder())
STATE = beam.DoFn.StateParam(SEEN)


class Stateful(beam.DoFn):
    def process(self, element, seen=STATE, *others, sign=1):
        yield element

    def setup(self, where="here"):
        pass


class Plain(beam.DoFn):
    def process(self, element, side=None):
        yield element

    @staticmethod
    def setup():
        pass


class Called:
    def __call__(self, element, times=2):
        return times * element


FUNCTIONS = [Stateful().process, Stateful.process, Plain().setup, len, dict, Called(), lambda: 0]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_signature_is_what_beam_finds_the_second_time_too(function):
    expected = core.get_function_args_defaults(function)
    with beam_signatures.kept():
        for _ in range(2):
            assert core.get_function_args_defaults(function) == expected


def test_a_dofn_is_as_stateful_as_it_was_and_a_function_is_looked_at_once(monkeypatch):
    # Beam itself may know the class by now; of this one it knows nothing.
    class Fresh(beam.DoFn):
        def process(self, element, seen=STATE):
            yield element

    looked, signature = [], inspect.signature
    before = core.get_signature
    monkeypatch.setattr(inspect, "signature", lambda function: looked.append(function) or signature(function))
    with beam_signatures.kept():
        for _ in range(3):
            assert userstate.get_dofn_specs(Fresh()) == ({SEEN}, set())
            assert userstate.get_dofn_specs(Plain()) == (set(), set())
    methods = [getattr(function, "__func__", function) for function in looked]
    assert Fresh.process in methods and len(methods) == len(set(methods))
    assert core.get_signature is before


def test_a_pipeline_answers_as_before():
    with beam_signatures.kept(), beam.Pipeline(argv=["--direct_running_mode=in_memory"]) as pipeline:
        numbers = pipeline | beam.Create([("a", 1), ("a", 2)])
        assert_that(numbers | beam.ParDo(Stateful()), equal_to([("a", 1), ("a", 2)]))
