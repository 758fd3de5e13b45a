"""What the workers of `twotower batch --shards` bring together: every row once, a user's in one shard, in order."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.data import tables
from modules.data.user_tables import UserRows, UserTables
from modules.settings import Interactions, Items, Tables, Users
from pipeline.sharded_batch import Question, Read, in_order

interactions = st.lists(
    st.tuples(st.integers(1, 9) | st.none(), st.sampled_from("pqr"), st.integers(0, 2)), max_size=40
)
ages = st.lists(st.tuples(st.integers(5, 12), st.integers(20, 29)), max_size=12)


@given(interactions, ages, st.integers(0, 40), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_together_know_what_the_tables_know_however_their_pieces_come(
    tmp_path: Path, rows: list[tuple], known: list[tuple], cut: int, shards: int, chance: random.Random
) -> None:
    for number, part in enumerate((rows[:cut], rows[cut:])):
        columns = [pa.array([row[place] for row in part], kind)
                   for place, kind in enumerate((pa.int64(), pa.string(), pa.int64()))]  # fmt: skip
        table = pa.table(columns, ["user_id", "item_id", "timestamp"])
        pq.write_table(table, tmp_path / f"interactions-{number}.parquet", row_group_size=3)
    table = pa.table([pa.array([row[place] for row in known], pa.int64()) for place in (0, 1)], ["user_id", "age"])
    pq.write_table(table, tmp_path / "users.parquet", row_group_size=2)
    described = UserTables(
        Tables(
            interactions=Interactions(path=str(tmp_path / "interactions-*.parquet")),
            items=Items(path="items.parquet"),
            users=Users(path=str(tmp_path / "users.parquet")),
        ),
        [tables.Column(name="age", source="age", kind="float32")],
    )
    question = Question("", 1, 0, 1, shards, None, "")
    pieces: dict[tuple[str, int], list] = {}
    for name, path in described.paths.items():
        read = Read(question, described.ids[name], described.columns[name])
        parts = [part for number, file in enumerate(tables.files(name, path)) for part in tables.parts(number, file)]
        for shard, piece in (found for part in parts for found in read.process(part)):
            pieces.setdefault((name, shard), []).append(piece)
    everybody, histories, attributes = described.everything(), {}, {}
    for shard in range(shards):
        of_table = [pieces.get((name, shard), []) for name in ("interactions", "users")]
        for some in of_table:
            chance.shuffle(some)
        of_shard = UserRows(*map(in_order, of_table))
        found = described.histories(of_shard), described.attributes(of_shard)
        assert not histories.keys() & found[0].keys() and not attributes.keys() & found[1].keys()
        histories |= found[0]
        attributes |= found[1]
    assert histories == dict(described.histories(everybody))
    assert attributes == described.attributes(everybody)
