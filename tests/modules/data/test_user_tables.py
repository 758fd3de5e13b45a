"""What a request knows of a user: the table's interactions in the order that the pipeline's examples have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.data.user_tables import UserTables
from modules.settings import Interactions, Items, Tables

rows_of_users = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from(["p", "q", None]), st.integers(0, 5)), max_size=30
)


@given(rows_of_users, st.integers(0, 30), st.sampled_from([None, {"a"}, {"a", "c", "nobody"}, set()]))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_histories_are_in_time_order_and_equal_times_in_that_of_the_files(
    tmp_path: Path, rows: list[tuple[str | None, str | None, int]], cut: int, users: set[str] | None
) -> None:
    for number, part in enumerate((rows[:cut], rows[cut:])):
        table = pa.table({
            "user_id": pa.array([user for user, *_ in part], pa.string()),
            "item_id": pa.array([item for _, item, _ in part], pa.string()),
            "timestamp": pa.array([time for *_, time in part], pa.int64()),
        })  # fmt: skip
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=4)
    expected: dict[str, list[tuple[int, str]]] = {}
    for user, item, time in rows:
        if user is not None and item is not None and (users is None or user in users):
            expected.setdefault(user, []).append((time, item))
    described = Tables(interactions=Interactions(path=str(tmp_path / "part-*.parquet")), items=Items(path="none"))
    known = UserTables(described, [])
    found = known.histories(known.everything(), users)
    assert list(found) == list(expected)
    for user, pairs in expected.items():
        pairs.sort(key=lambda pair: pair[0])
        assert found[user] == ([item for _, item in pairs], pairs[-1][0])
