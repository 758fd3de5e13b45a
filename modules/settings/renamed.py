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

BEAM_OPTIONS = {
    "--runner": "runner",
    "--direct_running_mode": "workers",
    "--direct_num_workers": "workers",
    "--parallelism": "workers",
    "--sdk_worker_parallelism": "workers",
    "--max_num_workers": "workers",
    "--job_endpoint": "job_endpoint",
    "--environment_type": "worker_pool",
    "--environment_config": "worker_pool",
    "--environment_option": "worker_pool",
    "--environment_options": "worker_pool",
    "--sdk_container_image": "worker_image",
    "--worker_harness_container_image": "worker_image",
    "--project": "project",
    "--region": "region",
    "--temp_location": "temp_location",
}
"""Option of Beam's command line, which `beam.options` had → the field of `beam` that says it now."""
