"""What a servable says of itself: read without TensorFlow, refused in one line when it is another contract's."""

import json
import subprocess
import sys

import pytest
import tensorflow as tf
from known_towers import FEATURES, LAYOUT

from modules.errors import UserError
from modules.servable.contract import (
    CONTRACT_VERSION,
    SERVABLE_PATH,
    EmbeddingContract,
    OldContractError,
    ServableContract,
    custom_ops,
    read_embedding,
    read_servable,
    register,
)

_EMBEDDING = EmbeddingContract(
    features=FEATURES, layout=LAYOUT, variables={"query_tower/constant": "embedding/fitted/0"}
)
_CONTRACT = ServableContract(
    model="films", k=20, evaluation_k=10, layer="scann", strategy="tree", partitions_to_search=3, reorder=50,
    catalogue_size=300, dimension=8, query_columns=("user_id", "history"), history_column="history",
    exclude_history=True, return_columns=("title",), filter_columns=("genres",), embedding=_EMBEDDING,
    max_per_value={"genres": 3}, signatures={"similar_items": ("item_id",)}, ops=("Scann>ScannSearchBatched",),
)  # fmt: skip


def _write(folder, content: str) -> None:
    (folder / "assets.extra").mkdir(exist_ok=True)
    (folder / SERVABLE_PATH).write_text(content)


def test_what_is_written_is_what_is_read(tmp_path):
    _write(tmp_path, _CONTRACT.model_dump_json())
    assert read_servable(str(tmp_path)) == _CONTRACT
    content = json.loads(_CONTRACT.model_dump_json())
    assert content["contract_version"] == CONTRACT_VERSION == 2
    assert content["embedding"]["layout"]["similarity"] == [0, 8]


def test_a_version_from_before_there_were_limits_has_none(tmp_path):
    content = json.loads(_CONTRACT.model_dump_json())
    del content["max_per_value"]
    _write(tmp_path, json.dumps(content))
    assert read_servable(str(tmp_path)).max_per_value == {}


@pytest.mark.parametrize("version", [1, 3])
def test_another_contract_is_refused_in_one_line(version, tmp_path):
    _write(tmp_path, json.dumps({"contract_version": version, "layer": "stock"}))
    with pytest.raises(OldContractError) as error:
        read_servable(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path} was written under contract version {version}, and this code reads 2; run the pipeline again"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "contract_version: Field required"),
        ('{"contract_version": 2}', "model: Field required"),
    ],
)
def test_a_damaged_contract_is_refused_in_one_line(content, words, tmp_path):
    _write(tmp_path, content)
    with pytest.raises(UserError, match="run the pipeline again") as error:
        read_servable(str(tmp_path))
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_contract_is_refused_in_one_line(tmp_path):
    for read, name in ((read_servable, "servable.json"), (read_embedding, "embedding.json")):
        with pytest.raises(
            UserError, match=f"assets.extra/{name} is missing; delete the folder and run the pipeline again"
        ):
            read(str(tmp_path))


def test_reading_a_contract_imports_no_tensorflow(tmp_path):
    _write(tmp_path, _CONTRACT.model_dump_json())
    script = (
        "import sys; from modules.servable.contract import read_servable; "
        "assert read_servable(sys.argv[1]).k == 20; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_stock_ops_are_no_custom_ops(tmp_path):
    module = tf.Module()
    module.double = tf.function(lambda x: x + x, input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(module, str(tmp_path))
    assert custom_ops(str(tmp_path)) == ()
    register(())
