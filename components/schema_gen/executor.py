"""Infers a schema split by split, each from the features that the split holds."""

from __future__ import annotations

import os
from collections.abc import Mapping

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2
from tfx.components.schema_gen import executor as stock
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils

from components.signature import Artifacts, Properties
from modules import schema as schemas
from modules.encodings.features import Columns, Features

FEATURES_KEY, COLUMNS_KEY, CODE_KEY = "features", "columns", "code"


class Executor(base_executor.BaseExecutor):
    """Executor of SchemaGen."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Writes `schema.pbtxt`.

        Args:
            input_dict: `statistics`, one ExampleStatistics artifact.
            output_dict: `schema`, one Schema artifact.
            exec_properties: JSON of `Features` and `Columns`.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        artifact = artifact_utils.get_single_instance(input_dict[keys.STATISTICS_KEY])
        schema = infer(
            {
                split: stats_artifact_utils.load_statistics(artifact, split).proto()
                for split in artifact_utils.decode_split_names(artifact.split_names)
            },
            Features.model_validate_json(exec_properties[FEATURES_KEY]),
            Columns.model_validate_json(exec_properties[COLUMNS_KEY]),
        )
        folder = artifact_utils.get_single_uri(output_dict[keys.SCHEMA_KEY])
        io_utils.write_pbtxt_file(os.path.join(folder, stock.DEFAULT_FILE_NAME), schema)


def infer(
    statistics: Mapping[str, statistics_pb2.DatasetFeatureStatisticsList], features: Features, columns: Columns
) -> schema_pb2.Schema:
    """The narrowest schema that the statistics of every split fit.

    Args:
        statistics: By split, `train` first: it shows which query features are the interactions' own.
        features: What the towers read.
        columns: The columns of an interaction.
    """
    schema = schema_pb2.Schema()
    seen: dict[str, set[str]] = {}
    for split, stats in statistics.items():
        here = seen[split] = {feature.path.step[0] for dataset in stats.datasets for feature in dataset.features}
        # TFDV would take what belongs to other splits alone for gone, and deprecate it.
        part, others = schemas.divided(schema, lambda feature: feature.name in here)  # noqa: B023 (called at once)
        schema = tfdv.update_schema(part, stats)
        schema.feature.extend(others)
    for feature in (features.history, features.history_age):
        # The pipeline writes them: nobody need have a history.
        if feature is not None and feature.column not in {known.name for known in schema.feature}:
            schema.feature.add(name=feature.column, type=schemas.TYPES[feature.dtype])
    for split, here in seen.items():
        for name in {known.name for known in schemas.of_split(schema, split, features, columns).feature} - here:
            next(known for known in schema.feature if known.name == name).ClearField("presence")
    return schema
