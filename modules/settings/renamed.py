"""Keys of older configurations, for the message that refuses them."""

from __future__ import annotations

RENAMED = {
    "model.dropout": "model.mask_rate",
    "model.id_dropout": "model.query_feature_dropout",
    "model.linear_rank": "model.item_item_rank",
    "model.linear_items": "model.item_item_items",
    "model.trend": "model.popularity_lift",
    "training.completion": "training.objective (masked_items, which was 1, or next_item, which was 0)",
    "tables.unknown_items": "tables.items_not_in_table",
    "tables.unknown_users": "tables.users_not_in_table",
}
"""Old key → what it is called now."""
