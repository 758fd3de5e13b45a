"""What ML Metadata's store on PostgreSQL needs to behave as the one on SQLite: backslashes, and an order.

ML Metadata 1.17.1 puts libpq's literal of a text into quotes once more. Of a text with a backslash the literal is E'…',
and the statement is wrong; JSON inside JSON, as the stages have it for parameters, is full of them. So on its way there
a backslash becomes another character, and on its way back that one a backslash. tests/pipeline/test_postgresql.py says
when ML Metadata has been mended.

Its queries ask for no order. SQLite answers by id, and TFX counts on that when it takes the outputs of a cached
execution; PostgreSQL answers rows that have been changed last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_metadata
from google.protobuf.message import Message

_STORED = "\ue05c"
"""Of Unicode's private use area: no text has a meaning for it."""
_NODES = ("artifacts", "executions", "contexts")
_THERE, _BACK = {ord("\\"): _STORED}, {ord(_STORED): "\\"}


def teach(store: type[ml_metadata.MetadataStore] = ml_metadata.MetadataStore) -> None:
    """Lets every store of this process, TFX's own among them, be one on PostgreSQL; once is enough."""
    call = store._pywrap_cc_call
    if hasattr(call, "translates"):
        return

    def translating(self: Any, method: Any, request: Message, response: Message) -> None:
        sent = type(request).FromString(request.SerializeToString())
        translate(sent, _THERE)
        call(self, method, sent, response)
        translate(response, _BACK)
        # With options the order was asked for.
        if "options" not in {field.name for field, _ in request.ListFields()}:
            for name in set(_NODES) & set(response.DESCRIPTOR.fields_by_name):
                getattr(response, name).sort(key=lambda node: node.id)

    translating.translates = True  # type: ignore[attr-defined]
    store._pywrap_cc_call = translating


def translate(message: Message, table: Mapping[int, str]) -> None:
    """Every text in a message, in place, as `str.translate` has it; keys of maps stay."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of_entry = field.message_type.fields_by_name["value"]
            for key in list(value):
                if of_entry.message_type is not None:
                    translate(value[key], table)
                elif of_entry.type == of_entry.TYPE_STRING:
                    value[key] = value[key].translate(table)
        elif field.type == field.TYPE_STRING:
            if field.is_repeated:
                value[:] = [text.translate(table) for text in value]
            else:
                setattr(message, field.name, value.translate(table))
        elif field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                translate(each, table)
