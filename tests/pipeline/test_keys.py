"""The keys of the configuration: the same ones that loading knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import world

from modules.encodings.features import ENCODINGS
from pipeline import config_file, keys
from pipeline.config import Config, load


def leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a loaded configuration, as `--set` names it."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict) and "column" in value[0]:
            for element in value:
                yield from leaves(element, f"{prefix}{key}.{element['column']}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_of_a_configuration_is_known(tmp_path):
    path = world.write_config(tmp_path)
    known = keys.written(Config, config_file.read(path))
    dumped = load(path).model_dump(mode="json", by_alias=True)
    # Without a column of its own in the file, a feature has no name there.
    dumped["features"]["query"] = [f for f in dumped["features"]["query"] if "history" not in f["encoding"]]
    # Values that are mappings themselves, such as a floor for each metric, are one key.
    missing = {key for key in leaves(dumped) if not any(key == name or key.startswith(f"{name}.") for name in known)}
    assert missing == set()


def test_what_is_offered_can_be_set(tmp_path):
    path = world.write_config(tmp_path)
    for key, words in keys.written(Config, config_file.read(path)).items():
        tree = config_file.read(path)
        config_file.replace(tree, f"{key}=null")
        for word in words if key.startswith(("training.", "features.query.gender.multi")) else ():
            load(path, [f"{key}={word}"])


def test_words_where_a_key_can_be_nothing_else(tmp_path):
    known = keys.written(Config, config_file.read(world.write_config(tmp_path)))
    assert known["training.objective"] == ("masked_items", "next_item")
    assert known["training.refit"] == ("false", "true")
    assert known["training.epochs"] == ()
    words = {get_args(kind.model_fields["encoding"].annotation)[0] for kind in ENCODINGS}
    assert set(known["features.query.age.encoding"]) == words
    assert "features.query.age.boundaries" in known and "features.query.age.min_count" not in known


@pytest.mark.parametrize(
    ("place", "key", "absent"),
    [
        ((), "training", "epochs"),
        (("training",), "epochs", "k"),
        (("features", "query", 0, "vocabulary"), "min_count", "boundaries"),
        (("split", "temporal"), "eval_from", "seed"),
        (("evaluation", "slices", 0), "boundaries", "k"),
    ],
)
def test_keys_of_a_place(place: tuple, key: str, absent: str):
    assert key in keys.at(Config, place) and absent not in keys.at(Config, place)
    assert keys.at(Config, ("nosuch",)) == []
