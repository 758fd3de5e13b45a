"""Whatever a configuration file and overrides hold, loading gives a configuration that can run, or one line."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.errors import UserError
from pipeline.config import Config, load

DEFAULT = Path("configs/movielens-100k.yaml")
TREE: dict[str, Any] = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
TREE |= {
    "training": {"seed": 1, "epochs": 3, "batch_size": 64, "learning_rate": 0.01, "temperature": 1, "averaging": 0.9},
    "model": {"dimension": 16, "mask_rate": 0.2, "query_layers": [8]},
    "index": {"seed": 1, "recall_target": 0.9, "partitions": 4},
    "tuner": {"trials": 3, "search": {"model.mask_rate": [0.1, 0.2]}},
    "output": {"root": "runs", "push": "served"},
    "metadata": {"kind": "sqlite", "port": 3306},
    "kubeflow": {"resources": {"Trainer": {"cpu": 2, "memory": 4, "node_selector": {"disk": "fast"}}}},
    "serving": {"return_columns": ["title"], "filter_columns": ["genres"], "max_per_value": {"genres": 10}},
    "beam": {"runner": "direct", "workers": 2, "options": ["--job_name=nightly"]},
}
TREE["evaluation"] |= {"k": [10, 50], "floors": {"ndcg@10": 0.01}, "max_regression": {"ndcg@10": 0.1}}
LAST_SECOND = 253_402_300_799

NUMBERS = [
    "0", "-1", "1", "1.5", "1e3", "1e-3", "1e400", "-1e39", ".nan", "nan", ".inf", "-inf", "infinity", "9" * 5000,
    "1" + "0" * 12, "1000000000", "4294967296", "-0.0", "0x10", "010", "1_000", "1:30", "²", "٣", "true", "yes", "~",
]  # fmt: skip
WORDS = [
    "", " ", "a", "no", "null", "2020-13-45", "2020-10-10", "a/b", "a b", "größe", "2nd", "a:b", "self", "class",
    "timestamp_bucket", "timestamp_cyclic", "title_bucket", "filter_genres", "Filter_Genres", "exclude", "examples",
    "label", "reading", "seed", "score", "item_id", "user_id", "timestamp", "slice_gender", "slice_activity", "history",
    "relevant_items", "interaction_weight", "interaction_time", "user_hash", "age", "Age", "activity", "x" * 5000,
    "a\0b", "a\nb", "a\x1b[31mb", "\ud800", "[/b]", "{}", "gs://", "\t", "ndcg@10", "stock",
]  # fmt: skip
TEXTS = st.sampled_from(NUMBERS + WORDS) | st.text(max_size=6)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from([10**12, 2**31, 2**32, 2**63, 2**64, -1, 0])
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=4
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything below a node."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in below for found in ((*path, key), *places(value, (*path, key)))]


PLACES = places(TREE)


@st.composite
def changed_trees(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The configuration with one place replaced, removed, doubled or with a sibling; and that place."""
    tree = copy.deepcopy(TREE)
    place = draw(st.sampled_from(PLACES))
    node: Any = tree
    for key in place[:-1]:
        node = node[key]
    kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "sibling"]))
    if kind == "replace":
        node[place[-1]] = draw(VALUES)
    elif kind == "remove":
        del node[place[-1]]
    elif isinstance(node, list):
        node.append(copy.deepcopy(node[place[-1]]) if kind == "double" else draw(VALUES))
    else:
        node[draw(TEXTS)] = draw(VALUES)
    return tree, place


def dumped(tree: Any) -> str:
    # Half a surrogate pair cannot be written as it is; the escape in double quotes can.
    return yaml.safe_dump(tree, allow_unicode=False, default_style=None, sort_keys=False)


FRAGMENTS = [
    "name: x\n", "name: 2020-13-45\n", "features:\n", "  query: ", "- ", "? ", ": ", "[", "]", "{", "}", ",", "\n",
    "  ", "&a ", "*a", "<<: *a\n", "a: &a [*a]\n", "!!set {a}", "!!python/object:os.system x", "!!binary aGk=", "!x ",
    "%YAML 1.1\n", "%YAML 9" + "9" * 5000 + ".1\n", "%TAG ! x\n", "---\n", "...\n", "'", '"', '"\\U00110000"',
    '"\\ud800"',
    '"\\0"', "|\n", ">-\n", "#", "\t", "\r", "\x85", "\u2028", "\ufeff", "\x00", "\x07", "@", "`", "=", "[" * 3000,
    "{a: " * 3000, "- " * 300, "9" * 5000, "a: 1\na: 2\n", "~: 1\n", "1: 2\n", "[a]: 1\n", "{a: b}: 1\n", "...",
    "a: &b {x: 1}\nc: *b\n", "\x80", "é",
]  # fmt: skip


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Bytes of a file: of the grammar of YAML, of a configuration in some encoding, or broken ones."""
    fragments = draw(st.lists(st.sampled_from(FRAGMENTS), max_size=8))
    text = "".join(fragments)
    if draw(st.booleans()):
        text = draw(st.sampled_from([f"{DEFAULT.read_text(encoding='utf-8')}\n{text}", text + dumped(TREE)]))
    encoded = text.encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])), "replace"
    )
    cut = draw(st.integers(0, 400))
    return draw(
        st.sampled_from([encoded, encoded, encoded[: -cut or None], encoded[:cut] + b"\xff\x00" + encoded[cut:]])
    )


def bomb(levels: int) -> bytes:
    """A thousand million values in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines).encode()


KEYS = st.sampled_from([".".join(map(str, place)) for place in PLACES]) | st.lists(
    st.sampled_from(
        ["features", "query", "²", "٣", "-1", "0", "7", "99999999999999999999", "age", "", "name", "*", "a b"]
    ),
    max_size=40,
).map(".".join)
OVERRIDES = st.tuples(KEYS, st.sampled_from(NUMBERS + WORDS + FRAGMENTS) | VALUES.map(lambda v: dumped(v))).map(
    "=".join
)


def outcome(path: Path, overrides: list[str]) -> Config | str:
    before = path.read_bytes()
    found: list[Config | str] = []
    for _ in range(2):
        try:
            found.append(load(str(path), overrides))
        except UserError as error:
            found.append(str(error))
        assert path.read_bytes() == before
    assert found[0] == found[1]
    check(found[0], path)
    return found[0]


def check(found: Config | str, path: Path) -> None:
    """The oracle: every number of a configuration can be computed with, and a message is one line that says where."""
    if isinstance(found, str):
        assert found.isprintable() and len(found) < 5000, found
        assert re.match(rf"configuration {re.escape(str(path))}: .+|--set .*: .+", found), found
        return
    for value in leaves(found.model_dump()):
        if isinstance(value, float):
            assert math.isfinite(value) and abs(value) < 3.5e38
        elif isinstance(value, int):
            assert -1 <= value <= LAST_SECOND
        elif isinstance(value, str):
            # Half of a surrogate pair cannot be encoded.
            assert b"\0" not in value.encode()
    assert all(1 <= k <= found.serving.k for k in found.evaluation.k)
    assert len(set(found.evaluation.k)) == len(found.evaluation.k)
    gates = [*found.evaluation.floors.values(), *found.evaluation.max_regression.values()]
    assert all(0 <= gate <= 1 for gate in gates)
    assert 0 <= found.training.seed < 2**31 and 0 <= found.index.seed < 2**31
    assert found.output.root and found.output.push
    assert 2 <= found.model.dimension <= 2**16 and found.training.batch_size <= 2**20
    assert all(each.boundaries is None or each.boundaries for each in found.evaluation.slices)
    features = [*found.features.query, *found.features.candidate]
    keys = [key for feature in features for key in feature.keys] + ["label", "user_hash", "interaction_time"]
    assert len(set(keys)) == len(keys)
    inputs = [f.column.lower() for f in found.features.query]
    inputs += [f"filter_{c.lower()}" for c in found.serving.filter_columns] + ["exclude"]
    assert len(set(inputs)) == len(inputs)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in inputs)
    assert set(found.serving.max_per_value) <= set(found.serving.filter_columns)
    assert all(most >= 1 for most in found.serving.max_per_value.values())
    outputs = [*found.serving.return_columns, "item_id", "score"]
    assert len(set(outputs)) == len(outputs)


def leaves(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in (key, *leaves(value))]
    return [leaf for value in node for leaf in leaves(value)] if isinstance(node, (list, tuple)) else [node]


BOUNDED = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configurations") / "config.yaml"


@pytest.mark.slow
@BOUNDED
@given(changed=changed_trees())
def test_a_changed_configuration_loads_or_names_the_key(file: Path, changed: tuple[dict[str, Any], tuple[Any, ...]]):
    tree, place = changed
    file.write_text(dumped(tree), encoding="utf-8")
    found = outcome(file, [])
    if isinstance(found, str) and not re.match(r".*: line \d+", found):
        assert str(place[0]) in found or "unknown key" in found or "not YAML" in found, (found, place)


@pytest.mark.slow
@BOUNDED
@given(content=contents())
def test_any_bytes_load_or_are_one_line(file: Path, content: bytes):
    file.write_bytes(content)
    outcome(file, [])


@BOUNDED
@given(overrides=st.lists(OVERRIDES, min_size=1, max_size=2))
def test_any_override_loads_or_is_one_line(file: Path, overrides: list[str]):
    file.write_text(dumped(TREE), encoding="utf-8")
    outcome(file, overrides)


@pytest.mark.parametrize("content", [bomb(9), b"[" * 200_000, b"- " * 100_000, b"a" * 300_000, b"{a: " * 3000])
def test_what_would_take_memory_or_stack_is_refused_at_once(file: Path, content: bytes):
    file.write_bytes(content)
    assert isinstance(outcome(file, []), str)
