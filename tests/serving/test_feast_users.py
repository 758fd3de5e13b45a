"""The Feast recipe without Feast: what it pushes, and that the request made of it is answered as the servable's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import world
from e2e_runs import Small

from modules.servable import contract
from serving import feast_users
from serving.client import TensorSpec, missing

pytestmark = pytest.mark.slow

NOW = world.START + 86400 * 400


def inputs(signature: tf.types.experimental.ConcreteFunction) -> dict[str, TensorSpec]:
    """As `Client.metadata` has them."""
    return {
        name: TensorSpec(np.dtype(object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype), tuple(spec.shape))
        for name, spec in signature.structured_input_signature[1].items()
    }


def ask(model: tf.Module, name: str, columns: dict) -> list[list[str]]:
    signature = model.signatures[name]
    specs = signature.structured_input_signature[1]
    answer = signature(**{key: tf.constant(value, specs[key].dtype) for key, value in columns.items()})
    return [[item.decode() for item in row if item] for row in answer["item_id"].numpy()]


def test_a_request_from_the_store_is_answered_as_one_by_user_id(small: Small):
    version = small.outcome.answer["pushed"]
    frame, columns = feast_users.known_users(version)
    assert set(frame) == {"user_id", "age", "gender", "history", "newest", "written"} and len(frame) == 100
    own = {str(row["user_id"]): row for row in world.users()}
    for row in frame.itertuples():
        taken = [str(r["item_id"]) for r in world.interactions() if str(r["user_id"]) == row.user_id]
        assert row.history == taken[-12:] and (row.age, row.gender) == (
            own[row.user_id]["age"],
            own[row.user_id]["gender"],
        )
    assert columns == feast_users.Columns("user_id", "timestamp", "history", "history_age")

    model = contract.load(version)
    users = [*frame["user_id"][:20], "nobody"]
    # A dictionary of lists, with None for who is not there: what Feast's `get_online_features(…).to_dict()` is.
    known = {name: [*frame[name][:20], None] for name in frame if name not in ("user_id", "written")}
    asked = feast_users.request(inputs(model.signatures["serving_default"]), columns, users, known, NOW)
    by_id = {name: missing(spec, len(users)) for name, spec in inputs(model.signatures["recommend_user"]).items()}
    by_id |= {"user_id": users, "timestamp": [NOW] * len(users)}
    # Whom nobody knows has an id here, and is anonymous there.
    asked["user_id"][-1] = ""
    answers = ask(model, "serving_default", asked)
    assert answers == ask(model, "recommend_user", by_id)
    assert len({tuple(answer) for answer in answers}) > 4


def test_a_version_that_knows_nobody_says_so(tmp_path: Path, small: Small):
    copied = small.serve_in(tmp_path)
    (copied / "assets.extra" / "users.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"users\.parquet"):
        feast_users.known_users(str(copied))
