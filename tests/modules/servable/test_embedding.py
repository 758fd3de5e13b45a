"""The two towers are taken out of one SavedModel and saved in another, with what a warm start reads."""

import numpy as np
import pytest
import tensorflow as tf
from known_towers import FEATURES, LAYOUT, World, load_embedding

from modules.servable import embedding as embeddings
from modules.servable.contract import read_embedding
from modules.servable.embedding import Embedding


class _Carrier(tf.Module):
    """As a servable: the towers among other things."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.other = tf.Variable(np.zeros(1000, np.float32))

    def functions(self):
        return {
            name: tf.function(lambda name=name, **inputs: self.embedding.signatures[name](**inputs))
            .get_concrete_function(**self.embedding.inputs(name))
            for name in self.embedding.signatures
        }  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return World(40)


def test_towers_travel_from_model_to_model_with_variables_and_tables(world, tmp_path):
    embedding = load_embedding(world.save_embedding(tmp_path / "model"))
    for turn in range(3):
        carrier, folder = _Carrier(embedding), str(tmp_path / f"carrier-{turn}")
        tf.saved_model.save(carrier, folder, carrier.functions())
        keys = embeddings.checkpoint_keys(folder, "embedding", "fitted")
        contract = embedding.contract.model_copy(update={"variables": keys})
        fitted = embeddings.read_variables(folder, contract)
        np.testing.assert_array_equal(fitted["item vectors/all"][:-1], world.item_vectors)
        # Nothing comes along that the towers do not read.
        reader = tf.train.load_checkpoint(f"{folder}/variables/variables")
        shapes = list(reader.get_variable_to_shape_map().values())
        assert shapes.count([1000]) == 1 and len(shapes) == 3 + 1 + 2, "three of the towers, one beside, two of TF"
        embedding = Embedding(tf.saved_model.load(folder), contract)
        vectors = embedding.query(user_id=tf.constant(["u3"]), history=tf.constant([["i4", "i5"]]))
        np.testing.assert_allclose(vectors[0], world.query("u3", ["i4", "i5"]), rtol=1e-6)


def test_names_of_variables_may_hold_slashes_and_dots(tmp_path):
    names = ["a/b", "a.b", "a..b/.S", "é:0"]
    variables = {name: tf.Variable(float(number)) for number, name in enumerate(names)}
    module = tf.Module()
    module.all = list(variables.values())
    query = tf.function(lambda x: {"embedding": x + module.all[0]}, input_signature=[tf.TensorSpec([None], name="x")])
    signatures = {"query_embedding": query, "candidate_embedding": query}
    embeddings.save(module, signatures, str(tmp_path), FEATURES, LAYOUT, variables)
    contract = read_embedding(str(tmp_path))
    assert embeddings.read_variables(str(tmp_path), contract) == {name: n for n, name in enumerate(names)}
    embedding = Embedding(tf.saved_model.load(str(tmp_path)), contract)
    assert {name: float(variable) for name, variable in embedding.fitted.items()} == {n: i for i, n in enumerate(names)}
