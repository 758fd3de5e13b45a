"""The sections of the YAML as types, a file each, importing nothing heavy. `features` is in modules/encodings."""

from modules.settings.beam import Beam
from modules.settings.data_schema import Schema
from modules.settings.evaluation import Evaluation, Slice, metric_names
from modules.settings.index import Index
from modules.settings.kubeflow import Kubeflow, Resources, Secret, Volume
from modules.settings.metadata import Metadata
from modules.settings.model import Model
from modules.settings.output import Output
from modules.settings.serving import Serving
from modules.settings.split import (
    ColumnSplit,
    LeaveLastOutSplit,
    RandomSplit,
    Split,
    TemporalSplit,
)
from modules.settings.tables import Interactions, Items, Tables, Users
from modules.settings.training import Training
from modules.settings.tuner import Tuner

__all__ = [
    "Beam",
    "ColumnSplit",
    "Evaluation",
    "Index",
    "Interactions",
    "Items",
    "Kubeflow",
    "LeaveLastOutSplit",
    "Metadata",
    "Model",
    "Output",
    "RandomSplit",
    "Resources",
    "Schema",
    "Secret",
    "Serving",
    "Slice",
    "Split",
    "Tables",
    "TemporalSplit",
    "Training",
    "Tuner",
    "Users",
    "Volume",
    "metric_names",
]
