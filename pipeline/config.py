"""The configuration: one YAML file per data set, checked whole before anything runs."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from modules.encodings.features import Features
from modules.errors import UserErrors
from modules.nearest import meant
from modules.settings import (
    Beam,
    ColumnSplit,
    Evaluation,
    Index,
    Kubeflow,
    Metadata,
    Model,
    Output,
    Schema,
    Serving,
    Split,
    Tables,
    TemporalSplit,
    Training,
    Tuner,
    metric_names,
)
from modules.settings.base import Settings
from modules.settings.renamed import RENAMED
from pipeline import config_file, keys, names
from pipeline.config_file import shown

# So many are named in one line.
_MISTAKES = 5
_OF_DATA = ("tables", "split", "features", "serving", "evaluation")
# Attention takes memory by the square of a history's length.
_ENCODED_LENGTH = 256
_NUMBER = re.compile(r"[-+]?[0-9.]+")
# By the type of pydantic's error, where its words are of Python's types.
_SHAPES = {"tuple_type": "expected a list"} | dict.fromkeys(
    ("model_type", "model_attributes_type", "dict_type"), "expected keys and values"
)


class Config(Settings):
    """Everything that a data set needs."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,127}$")
    """Name of the pipeline and of the served model."""
    tables: Tables
    split: Split = TemporalSplit()
    features: Features
    data_schema: Schema = Field(Schema(), alias="schema")
    model: Model = Model()
    training: Training = Training()
    tuner: Tuner = Tuner()
    index: Index = Field(Index(), validate_default=True)
    serving: Serving = Serving()
    evaluation: Evaluation = Evaluation()
    output: Output = Output()
    metadata: Metadata = Metadata()
    beam: Beam = Beam()
    kubeflow: Kubeflow = Kubeflow()

    @property
    def root(self) -> str:
        """Where artifacts, logs and by default the metadata store are."""
        return absolute(f"{self.output.root}/{self.name}")

    @property
    def push_destination(self) -> str:
        """The folder with one numbered folder per pushed version: the `base_path` that TF Serving watches."""
        return absolute(f"{self.output.push}/{self.name}")

    @field_validator("index")
    @classmethod
    def _as_many_answers_as_the_model_is_chosen_for(cls, index: Index, info: ValidationInfo) -> Index:
        if "recall_k" in index.model_fields_set or "training" not in info.data:
            return index
        # Not noted as set: a person's own settings are told from defaults by that.
        values = dict(index) | {"recall_k": info.data["training"].metric_k}
        return Index.model_construct(index.model_fields_set, **values)

    @field_validator("evaluation")
    @classmethod
    def _known_metrics(cls, evaluation: Evaluation) -> Evaluation:
        known = metric_names(evaluation.k)
        for key, metrics in (("floors", evaluation.floors), ("max_regression", evaluation.max_regression)):
            for metric in metrics:
                if metric not in known:
                    raise ValueError(f"{key}: unknown metric {metric!r}; known are {', '.join(known)}")
        return evaluation

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.serving.k < max(self.evaluation.k):
            raise ValueError(
                f"serving.k: {self.serving.k}, but evaluation.k asks for {max(self.evaluation.k)}; raise serving.k"
            )
        if self.model.history_encoder != "mean" and self.features.history is None:
            raise ValueError(
                f"model.history_encoder: {self.model.history_encoder}, but there is no history to encode; "
                "add `{encoding: history}` to features.query"
            )
        history = self.features.history
        if self.model.history_encoder != "mean" and history is not None and history.max_length > _ENCODED_LENGTH:
            raise ValueError(
                f"features.query.{history.column}.max_length: {history.max_length}, but a transformer reads at most "
                f"{_ENCODED_LENGTH} items (model.history_encoder: {self.model.history_encoder}); lower it, or take "
                "the mean"
            )
        if isinstance(self.split, ColumnSplit):
            interactions = self.tables.interactions
            for role in ("user", "item", "timestamp", "weight"):
                if self.split.column == getattr(interactions, role):
                    raise ValueError(f"split.column: {self.split.column!r} is tables.interactions.{role} already; "
                                     "name the column that says train, validation or eval")  # fmt: skip
        names.check(self.tables, self.features, self.serving, self.evaluation)
        if self.serving.known_users:
            self._check_known_users()
        return self

    def _check_known_users(self) -> None:
        if self.features.history is None and self.tables.users is None:
            raise ValueError(
                f"serving.known_users: {self.serving.known_users}, but without a history and without tables.users "
                "there is nothing to know of a user; add `{encoding: history}` to features.query, or set it to 0"
            )
        named = self.tables.interactions
        for number, feature in enumerate(self.features.query):
            wrong = f"features.query.{number}.encoding: {feature.encoding}, but with serving.known_users"
            if feature.column == named.user and (feature.dtype != "string" or feature.is_list):
                raise ValueError(
                    f"{wrong} the user's id {named.user!r} must be one text; encode it as vocabulary or hash"
                )
            if feature.column == named.timestamp and feature.dtype != "int64":
                raise ValueError(f"{wrong} the time {named.timestamp!r} must be in seconds; encode it as timestamp")


def absolute(path: str) -> str:
    """Local paths as absolute ones: stages may run in another working directory."""
    return path if "://" in path else os.path.abspath(path)


def load(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads and checks a configuration.

    Args:
        path: A YAML file.
        overrides: `key.path=value` pairs that replace keys of the file (`config_file.replace`).

    Raises:
        UserError: The file cannot be read, a key is unknown or has the wrong type; the message has the path of the key.
    """
    try:
        return Config.model_validate(_tree(path, overrides))
    except ValidationError as error:
        raise UserErrors(mistakes(error), f"configuration {shown(path, 1000)}: ", _MISTAKES) from None


def load_data(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Config | None:
    """The sections that say what the data are, with defaults for all others; None if these have a mistake themselves.

    For a look at the tables of a configuration that `load` refuses.
    """
    tree = _tree(path, overrides)
    about = {key: tree[key] for key in _OF_DATA if key in tree}
    try:
        return Config.model_validate({"name": "x", **about})
    except ValidationError:
        return None


def _tree(path: str, overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    tree = config_file.read(path)
    for override in overrides:
        config_file.replace(tree, override)
    return tree


def mistakes(error: ValidationError) -> list[str]:
    """Each mistake: the path of its key, and what was expected there."""
    found = []
    for mistake in error.errors(include_url=False):
        if mistake["type"] == "default_factory_not_called":
            # A default that follows from another key, which is named already.
            continue
        path = ".".join(shown(str(part), 60) for part in mistake["loc"])
        if mistake["type"] == "extra_forbidden" and path in RENAMED:
            words = f"is now {RENAMED[path]}; rename it"
        elif mistake["type"] == "extra_forbidden":
            *place, key = mistake["loc"]
            words = f"unknown key{meant(str(key), keys.at(Config, place), 'remove it or correct its name')}"
        elif mistake["type"] == "missing":
            words = "is missing"
        else:
            words = _SHAPES.get(mistake["type"]) or shown(mistake["msg"].removeprefix("Value error, "), 500)
            if not isinstance(mistake["input"], (dict, list)) and mistake["type"] != "value_error":
                words += f", not {_as_written(mistake['input'])}"
        # A check of the whole names the key by itself.
        found.append(f"{path}: {words}" if path else words)
    return found


def _as_written(value: Any) -> str:
    """A number bare, other texts in quotes."""
    text = "null" if value is None else shown(str(value), 60)
    return text if value is None or _NUMBER.fullmatch(text) else repr(text)
