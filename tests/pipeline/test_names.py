"""No two things of a configuration have one name, and none has a name that it cannot have."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.encodings.features import Features
from modules.settings import Evaluation, Serving, Tables
from pipeline import names


def check(
    query: tuple[Any, ...] = (),
    candidate: tuple[Any, ...] = (),
    *,
    tables: dict[str, Any] | None = None,
    items: dict[str, Any] | None = None,
    returned: tuple[str, ...] = (),
    filters: tuple[str, ...] = (),
    slices: tuple[str, ...] = (),
    known_users: int = 0,
) -> None:
    """Checks an otherwise ordinary configuration; a feature is a column of a vocabulary, or its settings."""

    def feature(given: Any) -> dict[str, Any]:
        return {"column": given, "encoding": "vocabulary"} if isinstance(given, str) else given

    names.check(
        Tables.model_validate({"interactions": {"path": "i.csv", **(tables or {})},
                               "items": {"path": "c.csv", **(items or {})}}),
        Features.model_validate({
            "query": [{"column": "timestamp", "encoding": "timestamp"}, {"encoding": "history"}, *map(feature, query)],
            "candidate": [feature("item_id"), *map(feature, candidate)],
        }),
        Serving.model_validate({"return_columns": returned, "filter_columns": filters, "known_users": known_users}),
        Evaluation.model_validate({"slices": [{"column": column} for column in slices]}),
    )  # fmt: skip


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the timestamp's bucket": (
        {"query": ("timestamp_bucket",)},
        "features.query.2.column: the encoding of 'timestamp_bucket' would be 'timestamp_bucket' in the transformed "
        "examples, as is the encoding of 'timestamp' (features.query.0.column); rename a column",
    ),
    "its waves, on the other side": ({"candidate": ("timestamp_cyclic",)}, "features.candidate.1.column"),
    "the encoding of another time": (
        {"query": ("born_cyclic",), "candidate": ({"column": "born", "encoding": "timestamp"},)}, "born_cyclic",
    ),
    "two times whose keys meet": (
        {"query": ("added_bucket_bucket", {"column": "added_bucket", "encoding": "timestamp"})}, "added_bucket_bucket",
    ),
    "the label": ({"query": ("label",)}, "'label'"),
    "a sequence": ({"query": ("age", "sequence_age")}, "the sequence of 'age'"),
    "the sequence of items": ({"candidate": ("sequence_interaction_weight",)}, "sequence_interaction_weight"),
    "the weight": ({"candidate": ("interaction_weight",)}, "that the pipeline uses itself"),
    "the relevant items as an output": ({"returned": ("relevant_items",)}, "serving.return_columns: 'relevant_items'"),
    "a slice": ({"candidate": ("slice_age",), "slices": ("age",)}, "evaluation.slices.0: the slice by 'age'"),
    "a slice, returned": ({"returned": ("slice_age",), "slices": ("age",)}, "evaluation.slices.0"),
    "a user id named like a slice": ({"tables": {"user": "slice_age"}, "slices": ("age",)}, "tables.interactions.user"),
    "the excluded items": ({"query": ("exclude",)}, "inputs of the servable"),
    "the explained items": ({"query": ("explain",)}, "inputs of the servable"),
    "vectors that are explained": ({"query": ("candidates",)}, "inputs of the servable"),
    "an explanation": ({"returned": ("part_score",)}, "serving.return_columns: 'part_score'"),
    "the title of a reason": (
        {"returned": ("title", "reason_title")}, "column 'reason_title' would be 'reason_title' in the outputs",
    ),
    "a filter": ({"query": ("filter_genre",), "filters": ("genre",)}, "the filter by 'genre'"),
    "a filter in capitals": ({"query": ("Filter_Genre",), "filters": ("genre",)}, "the filter by 'genre'"),
    "columns that differ in capitals": ({"query": ("Age", "age")}, "'age'"),
    "the examples of `evaluate`": ({"query": ("examples",)}, "'examples'"),
    "the answer's ids": ({"returned": ("item_id",)}, "serving.return_columns: 'item_id'"),
    "the answer's scores": ({"returned": ("score",)}, "serving.return_columns: 'score'"),
    "the history, returned": ({"returned": ("history",)}, "(features.query.1.column)"),
    "the history as user id": ({"tables": {"user": "history"}}, "(tables.interactions.user)"),
    "the item as a query's column": (
        {"query": ("movie",), "tables": {"item": "movie"}}, "as is the item's id (tables.interactions.item)",
    ),
    "the user as an item's column": ({"candidate": ("user_id",)}, "(tables.interactions.user)"),
    "a query's column, returned": ({"query": ("name",), "returned": ("name",)}, "serving.return_columns"),
    "a query's column as title": ({"query": ("name",), "items": {"title": "name"}}, "tables.items.title"),
    "a slash": ({"query": ("a/b",)}, "features.query.2.column: 'a/b' would be an input of the servable"),
    "a space": ({"candidate": ("a b",)}, "features.candidate.1.column: 'a b'"),
    "a letter of no A to Z": ({"query": ("größe",)}, "'größe' would be an input"),
    "a digit first": ({"query": ("2nd",)}, "'2nd' would be an input"),
    "a colon": ({"query": ("a:b",)}, "'a:b' would be an input"),
    "a word of Python's": ({"query": ("class",)}, "'class' would be an input"),
    "self": ({"query": ("self",)}, "'self' would be an input"),
    "an item id with a colon": ({"tables": {"item": "item:id"}}, "tables.interactions.item: 'item:id'"),
    "another column as the known user's id": (
        {"query": ("user_id",), "tables": {"user": "customer"}, "known_users": 1},
        "features.query.2.column: column 'user_id' of the query side would be 'user_id' in the inputs of the servable, "
        "as is column 'customer' of the query side (tables.interactions.user)",
    ),
    "a time that ages are counted to": (
        {"query": ({"encoding": "history_age"},), "tables": {"timestamp": "at noon"}, "known_users": 1},
        "tables.interactions.timestamp: 'at noon' would be an input",
    ),
    "a filter with a space": ({"filters": ("a b",)}, "serving.filter_columns: 'filter_a b' would be an input"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_for_two_things_is_refused(case: str):
    arguments, words = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        check(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": ("user_id",)},
        {"query": ("age",), "slices": ("age", "job", "user_id")},
        {"candidate": ("genres",), "returned": ("genres",), "filters": ("genres",), "items": {"title": "genres"}},
        # What is no feature is no input and has no encoding.
        {"returned": ("timestamp_bucket", "label", "seed", "a/b", "größe")},
        {"tables": {"user": "user id/größe", "weight": "score"}, "slices": ("job (b)",)},
        {"query": ("timestamp_hour", "slice_of_life", "filter_age"), "slices": ("age",), "filters": ("genres",)},
        {"tables": {"item": "movie"}, "candidate": ("movie",), "returned": ("title",)},
        {"filters": ("2nd",)},
        {"query": ("user_id", {"encoding": "history_age"}), "known_users": 1},
        {"query": ("customer",), "tables": {"user": "customer"}, "known_users": 1},
    ],
)
def test_one_thing_may_be_asked_for_twice_and_plain_names_are_free(arguments: dict[str, Any]):
    check(**arguments)


COLUMNS = st.sampled_from(
    [base + end for base in ("timestamp", "born", "age", "item_id", "history", "exclude", "label", "score")
     for end in ("", "_bucket", "_cyclic", "_bucket_cyclic")]
    + ["filter_age", "slice_age", "filter_born", "slice_born", "Age", "relevant_items", "examples"]
)  # fmt: skip
FEATURES = st.lists(
    st.tuples(COLUMNS, st.sampled_from(["vocabulary", "timestamp", "log1p"])),
    max_size=4,
    unique_by=lambda pair: pair[0],
)


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(query=FEATURES, candidate=FEATURES, shown=st.sets(COLUMNS, max_size=2), slices=st.sets(COLUMNS, max_size=2))
def test_what_is_accepted_has_one_name_for_each_thing(query, candidate, shown, slices):
    columns = ["timestamp", "history", *(c for c, _ in query), "item_id", *(c for c, _ in candidate)]
    if len(set(columns)) < len(columns):
        return

    def encoded(column: str, encoding: str) -> list[str]:
        return [f"{column}_bucket", f"{column}_cyclic"] if encoding == "timestamp" else [column]

    pairs = [("timestamp", "timestamp"), ("history", ""), ("item_id", ""), *query, *candidate]
    keys = [key for pair in pairs for key in encoded(*pair)] + ["label", "interaction_weight"]
    query_side = {"timestamp", "history", "user_id", *(c for c, _ in query)}
    item_side = {"item_id", *(c for c, _ in candidate), *shown}
    of_slices = {f"slice_{column}" for column in slices}
    inputs = [c.lower() for c in columns] + [f"filter_{c}".lower() for c in shown] + ["exclude", "examples"]
    unique = (
        len(set(keys)) == len(keys)
        and len(set(inputs)) == len(inputs)
        and not query_side & item_side
        and not of_slices & (query_side | item_side)
        and not {"relevant_items", "examples"} & (query_side | item_side)
        and not {"item_id", "score"} & shown
    )
    try:
        check(
            tuple({"column": c, "encoding": e} for c, e in query),
            tuple({"column": c, "encoding": e} for c, e in candidate),
            returned=tuple(sorted(shown)),
            filters=tuple(sorted(shown)),
            slices=tuple(sorted(slices)),
        )
    except ValueError:
        assert not unique
    else:
        assert unique
