"""Validates each split as the stock ExampleValidator does, and says in words what it found."""

from __future__ import annotations

import re
from collections.abc import Callable

from absl import logging
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx import types
from tfx.components.example_validator import executor as stock
from tfx.components.example_validator import labels
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils, json_utils

from components.signature import Artifacts, Properties
from modules import schema as schemas
from modules.data.examples import CATALOGUE
from modules.encodings.features import Columns, Features
from modules.errors import UserError

FEATURES_KEY, COLUMNS_KEY, K_KEY = "features", "columns", "k"

# Longer lists of allowed values are cut.
_VALUES_SHOWN = 10


class Executor(stock.Executor):
    """Executor of the ExampleValidator."""

    def Do(
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> execution_result_pb2.ExecutorOutput:
        """Validates each split against its part of the schema, then fails if there are anomalies.

        The stock executor expects the same features in every split.

        Args:
            input_dict: As for the stock executor.
            output_dict: As for the stock executor.
            exec_properties: As for the stock executor; JSON of `Features` and `Columns`; `k`: items in an answer.

        Raises:
            UserError: The schema does not describe the features, the data is not what the schema says, or the catalogue
                is smaller than an answer.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        schema = io_utils.SchemaReader().read(
            io_utils.get_only_uri_in_dir(artifact_utils.get_single_uri(input_dict[keys.SCHEMA_KEY]))
        )
        features = Features.model_validate_json(exec_properties[FEATURES_KEY])
        columns = Columns.model_validate_json(exec_properties[COLUMNS_KEY])
        schemas.check(schema, features, columns)

        statistics = artifact_utils.get_single_instance(input_dict[keys.STATISTICS_KEY])
        k = exec_properties[K_KEY]
        if CATALOGUE in artifact_utils.decode_split_names(statistics.split_names):
            size = _examples(statistics, CATALOGUE)
            if k > size:
                raise UserError(
                    f"serving.k is {k} but the catalogue has {size} items; set it, and evaluation.k, to {size} or less"
                )

        anomalies = artifact_utils.get_single_instance(output_dict[keys.ANOMALIES_KEY])
        excluded = json_utils.loads(exec_properties.get(keys.EXCLUDE_SPLITS_KEY, "null")) or []
        splits = [s for s in artifact_utils.decode_split_names(statistics.split_names) if s not in excluded]
        anomalies.split_names = artifact_utils.encode_split_names(splits)
        anomalies.span = statistics.span
        blessed: dict[str, int] = {}
        splits_of: dict[str, list[str]] = {}
        for split in splits:
            result = self._Validate(
                {
                    keys.STATISTICS_KEY: stats_artifact_utils.load_statistics(statistics, split).proto(),
                    keys.SCHEMA_KEY: schemas.of_split(schema, split, features, columns),
                },
                {labels.SCHEMA_DIFF_PATH: artifact_utils.get_split_uri([anomalies], split)},
            )
            clean = not result.anomaly_info and not result.HasField("dataset_anomaly_info")
            blessed[split] = stock.BLESSED_VALUE if clean else stock.NOT_BLESSED_VALUE
            for words in in_words(result, schema):
                splits_of.setdefault(words, []).append(split)
        anomalies.set_json_value_custom_property(stock.ARTIFACT_PROPERTY_BLESSED_KEY, blessed)
        if splits_of:
            by_splits: dict[str, list[str]] = {}
            for words, where in splits_of.items():
                by_splits.setdefault(", ".join(where), []).append(words)
            sentences = ". ".join(f"anomalies in {where}: {'; '.join(words)}" for where, words in by_splits.items())
            raise UserError(f"{sentences}; correct the tables or the schema")
        output = execution_result_pb2.ExecutorOutput()
        output.output_artifacts[keys.ANOMALIES_KEY].artifacts.append(anomalies.mlmd_artifact)
        return output


def in_words(anomalies: anomalies_pb2.Anomalies, schema: schema_pb2.Schema) -> list[str]:
    """Each anomaly of a split as `feature: what was expected; what came`. Mere warnings are logged."""
    # TFDV leaves it at this flag, and the stock executor takes a split without a single example for a valid one.
    if anomalies.data_missing:
        return ["no examples"]
    result = [_sentence(reason.description) for reason in anomalies.dataset_anomaly_info.reason]
    features = {feature.name: feature for feature in schema.feature}
    for key, info in sorted(anomalies.anomaly_info.items()):
        name = ".".join(info.path.step) or key
        kinds = {reason.type for reason in info.reason}
        dropped = set()
        # A feature that is absent here and there has no shape either; that it is absent says all.
        if len(kinds) > 1:
            dropped.add(anomalies_pb2.AnomalyInfo.INVALID_FEATURE_SHAPE)
        # Text that is no number is said with an example of it.
        if kinds & {
            anomalies_pb2.AnomalyInfo.FLOAT_TYPE_STRING_NOT_FLOAT,
            anomalies_pb2.AnomalyInfo.INT_TYPE_NOT_INT_STRING,
        }:
            dropped.add(anomalies_pb2.AnomalyInfo.UNEXPECTED_DATA_TYPE)
        for reason in info.reason:
            if reason.type in dropped:
                continue
            words = f"{name}: {_clause(reason, features.get(name), schema)}"
            if info.severity == anomalies_pb2.AnomalyInfo.WARNING:
                logging.warning("Schema warning: %s", words)
            else:
                result.append(words)
    return result


def _examples(statistics: types.Artifact, split: str) -> int:
    """Number of a split's examples."""
    return stats_artifact_utils.load_statistics(statistics, split).proto().datasets[0].num_examples


def _clause(
    reason: anomalies_pb2.AnomalyInfo.Reason, feature: schema_pb2.Feature | None, schema: schema_pb2.Schema
) -> str:
    write = _CLAUSES.get(reason.type)
    return (write(reason.description, feature, schema) if write else None) or _sentence(reason.description)


def _sentence(description: str) -> str:
    return " ".join(description.split()).rstrip(".")


# How TFDV's descriptions become words. A function gives None where the description is not as it knows it.


def _unexpected_values(description: str, feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str | None:
    got = re.findall(r"(.+?) \(([~<]?)([\d.]+)%\)(?:, |\.\s*$)", description.partition("schema: ")[2])
    if not got:
        return None
    domain = list(feature.string_domain.value)
    domain += [value for each in schema.string_domain if each.name == feature.domain for value in each.value]
    allowed = ", ".join(domain[:_VALUES_SHOWN])
    if len(domain) > _VALUES_SHOWN:
        allowed += f", … ({len(domain)} values)"
    signs = {"~": "about ", "<": "less than ", "": ""}
    came = ", ".join(f'"{value}" ({signs[sign]}{percent} % of values)' for value, sign, percent in got)
    return f"expected one of {allowed}; got {came}"


def _low_fraction(description: str, feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str | None:
    match = re.search(r"minimum fraction = ([\d.]+), actual = ([\d.]+)", description)
    if not match:
        return None
    least, actual = (100 * float(share) for share in match.groups())
    expected = "in every example" if least == 100 else f"in at least {least:.6g} % of the examples"
    return f"expected {expected}; is in {actual:.6g} %"


def _data_type(description: str, feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str | None:
    match = re.search(r"type: (\w+) but got (\w+)", description)
    if not match:
        return None
    kinds = {"INT": "whole numbers", "FLOAT": "numbers with decimals", "STRING": "text", "BYTES": "text"}
    expected, got = (kinds.get(kind, kind) for kind in match.groups())
    return f"expected {expected}; got {got}"


def _not_a_number(description: str, feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str | None:
    match = re.search(r'such as "(.*)"', description)
    kind = "numbers" if feature.type == schema_pb2.FLOAT else "whole numbers"
    return f'expected {kind}; got text such as "{match[1]}"' if match else None


def _out_of_range(description: str, feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str | None:
    match = re.search(r": *(\S+?) *([<>]) *([-+\d.einf]+?)(?:[(\s]|\.?\s*$)", description)
    if not match:
        return None
    value, sign, bound = match.groups()
    return f"expected at {'least' if sign == '<' else 'most'} {bound}; got {value}"


def _integer_out_of_range(description: str, feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str | None:
    # Here TFDV does not say the bound.
    match = re.search(r"(small|large) value: (-?\d+)", description)
    if not match:
        return None
    small, domain = match[1] == "small", feature.int_domain
    return f"expected at {f'least {domain.min}' if small else f'most {domain.max}'}; got {match[2]}"


def _constant(words: str) -> Callable[..., str]:
    return lambda description, feature, schema: words


_CLAUSES: dict[int, Callable[..., str | None]] = {
    anomalies_pb2.AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES: _unexpected_values,
    anomalies_pb2.AnomalyInfo.FEATURE_TYPE_LOW_FRACTION_PRESENT: _low_fraction,
    anomalies_pb2.AnomalyInfo.UNEXPECTED_DATA_TYPE: _data_type,
    anomalies_pb2.AnomalyInfo.FLOAT_TYPE_STRING_NOT_FLOAT: _not_a_number,
    anomalies_pb2.AnomalyInfo.INT_TYPE_NOT_INT_STRING: _not_a_number,
    anomalies_pb2.AnomalyInfo.FLOAT_TYPE_SMALL_FLOAT: _out_of_range,
    anomalies_pb2.AnomalyInfo.FLOAT_TYPE_BIG_FLOAT: _out_of_range,
    anomalies_pb2.AnomalyInfo.INT_TYPE_SMALL_INT: _integer_out_of_range,
    anomalies_pb2.AnomalyInfo.INT_TYPE_BIG_INT: _integer_out_of_range,
    anomalies_pb2.AnomalyInfo.FLOAT_TYPE_HAS_NAN: _constant("expected numbers; got NaN"),
    anomalies_pb2.AnomalyInfo.FLOAT_TYPE_HAS_INF: _constant("expected finite numbers; got infinity"),
    anomalies_pb2.AnomalyInfo.SCHEMA_MISSING_COLUMN: _constant("expected in the data; is in no example"),
    anomalies_pb2.AnomalyInfo.SCHEMA_NEW_COLUMN: _constant("not expected, the schema does not have it; got a column"),
    anomalies_pb2.AnomalyInfo.INVALID_FEATURE_SHAPE: _constant(
        "expected the same number of values in every example; got different numbers"
    ),
}
