"""Fits the two towers and exports the embedding model: the `run_fn` of the stock Trainer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tensorflow_transform as tft
import tf_keras
from tensorflow.python.framework import config as framework_config

from modules import linear
from modules.errors import UserError
from modules.features import LABEL, TIME, USER, WEIGHT, Columns, Features, HistoryAge, Log1p, Normalized, Vocabulary
from modules.preprocessing import Preprocessor, cardinality, item_frequency
from modules.servable import embedding
from modules.settings import Model, Training
from modules.towers.layout import VectorLayout
from modules.two_tower import COMPLETION, NEXT, TwoTower, is_item_id, query_inputs
from modules.validation import Blend, Judge, Queries
from modules.warm_start import Start, fitted_variables

_PROGRESS = logging.getLogger("twotower.progress")
# At most this many validation queries are ranked after an epoch; a fixed draw of them.
_VALIDATION_QUERIES = 10_000
# Users whose features stand for everybody's where a history is missing.
_USERS_WITHOUT_HISTORY = 64
_READ_BATCH = 4096
# What validation chooses from (two_tower.QueryTower).
_CHOICES: dict[str, tuple[float, ...]] = {
    "recency": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "linear_recency": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "linear_gain": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "trend_gain": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    # At 1 who is new gets what is popular now; more would extrapolate.
    "cold_trend_gain": (0.0, 0.25, 0.5, 0.75, 1.0),
}
_CLIMB_EVERY = 3
# What a step away from the defaults must gain, relative: less is the luck of a few hundred queries.
_WORTH = 0.005
_RIDGES = (100.0, 300.0, 1000.0)
# Transitions: the n-th item from a place weighs n ** −decay.
_DECAY = 0.85
# Shares of the training period, by interactions, that can be "now" for the trend. The first is taken unless another is
# better by more than this many standard errors: on a few hundred queries the longest, calmest one does best.
_NOW = (0.2, 0.1, 0.05)
_SURE = 2.0
# How far a trend is drawn to 0, as a share of the interactions of now.
_TREND_PRIOR = 0.2


# Called by the stock Trainer.
def run_fn(fn_args: Any) -> None:
    """Reads the transformed splits, fits, and writes the embedding model.

    Args:
        fn_args: `tfx.components.FnArgs`. `train_files` and `eval_files` are the patterns of the train and the
            validation split; the catalogue split lies beside them. `custom_config` holds `features`, `columns`, `model`
            and `training` (JSON of the settings) and `checkpoint_root`, where a killed run finds its last epoch again.

    Raises:
        UserError: There is nothing to fit, or the loss is not a number any more.
    """
    problem = read_problem(fn_args)
    config, features = fn_args.custom_config, problem.features
    tft_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    train = read_rows(fn_args.train_files, features, tft_output)
    validation = read_rows(fn_args.eval_files or [], features, tft_output)
    checkpoint = None
    if config.get("checkpoint_root"):
        identity = json.dumps(
            [config, sorted(fn_args.train_files), fn_args.transform_graph_path, getattr(fn_args, "base_model", None),
             getattr(fn_args, "hyperparameters", None)], sort_keys=True,
        )  # fmt: skip
        checkpoint = os.path.join(config["checkpoint_root"], hashlib.sha256(identity.encode()).hexdigest()[:16])
    start = None
    if problem.training.warm_start and fn_args.base_model and tf.io.gfile.exists(fn_args.base_model):
        start = Start(fn_args.base_model, problem.features, problem.columns, tft_output)
    model, report = fit(problem, train, validation, checkpoint, fn_args.model_run_dir, start)
    report["tuned"] = _tuned(fn_args)
    export(model, problem, tft_output, fn_args.serving_model_dir)
    if fn_args.model_run_dir:
        with tf.io.gfile.GFile(os.path.join(fn_args.model_run_dir, "training.json"), "w") as file:
            json.dump(report, file, indent=2)
    if checkpoint and tf.io.gfile.exists(checkpoint):
        tf.io.gfile.rmtree(checkpoint)


def read_problem(fn_args: Any) -> Problem:
    """The settings, and what Transform learned and encoded of the catalogue."""
    config = fn_args.custom_config
    features = Features.model_validate_json(config["features"])
    columns = Columns.model_validate_json(config["columns"])
    tft_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    catalogue_files = os.path.join(os.path.dirname(os.path.dirname(fn_args.train_files[0])), "Split-catalogue", "*")
    problem = Problem(
        features=features,
        columns=columns,
        model=Model.model_validate_json(config["model"]),
        training=Training.model_validate_json(config["training"]),
        cardinalities={
            f.column: cardinality(f, columns, features, tft_output)
            for f in (*features.query, *features.candidate)
            if not isinstance(f, (Normalized, Log1p, HistoryAge))
        },
        item_rows=item_rows(features, columns, tft_output),
        catalogue=read_catalogue([catalogue_files], features, len(item_frequency(tft_output)), tft_output),
    )
    return problem.with_settings(_tuned(fn_args))


def _tuned(fn_args: Any) -> dict[str, float]:
    """What the Tuner found, if there was one."""
    return (getattr(fn_args, "hyperparameters", None) or {}).get("values", {})


def item_rows(features: Features, columns: Columns, tft_output: tft.TFTransformOutput) -> int:
    """Rows of the table that the history and the item id share: 1 + V + out-of-vocabulary buckets."""
    item = next((f for f in features.candidate if is_item_id(f, columns)), None) or Vocabulary(column=columns.item)
    return cardinality(item, columns, features, tft_output)


def export(model: TwoTower, problem: Problem, tft_output: tft.TFTransformOutput, directory: str) -> None:
    """Writes the embedding model, preprocessing inside, with two signatures.

    - `query_embedding`: the query's columns → `embedding` [B, D] float32
    - `candidate_embedding`: the candidate's columns and the item id → `embedding` [B, D] float32 and `popularity` [B]
      float32, the item's interactions in training
    """
    # A few requests are cheaper gathered than as rows of the whole vocabulary.
    model.query_tower.dense_history = False
    query = Preprocessor(tft_output, problem.features.query)
    candidate = Preprocessor(tft_output, problem.features.candidate, (problem.columns.item,))
    module = tf.Module()
    module.query_preprocessor, module.candidate_preprocessor = query, candidate
    module.query_tower, module.candidate_tower = model.query_tower, model.candidate_tower
    module.popularity = tf.Variable(np.append(np.float32(0), item_frequency(tft_output)), trainable=False)

    def query_embedding(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": model.query_tower(query(requests))}

    def candidate_embedding(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = candidate(requests)
        popularity = tf.gather(module.popularity, encoded[LABEL])
        return {"embedding": model.candidate_tower(encoded), "popularity": popularity}

    signatures = {
        "query_embedding": tf.function(query_embedding).get_concrete_function(**query.signature()),
        "candidate_embedding": tf.function(candidate_embedding).get_concrete_function(**candidate.signature()),
    }
    layout = VectorLayout.of(problem.model, model.query_tower.linear_rank)
    fitted = fitted_variables(problem.features, problem.columns, model)
    embedding.save(module, signatures, directory, problem.features, layout, fitted)


def read_rows(patterns: Sequence[str], features: Features, tft_output: tft.TFTransformOutput) -> Rows:
    """The query side of transformed examples, with label and weight, by user and time."""
    arrays = _read(patterns, [*query_inputs(features.query), LABEL, WEIGHT, USER, TIME], tft_output)
    label, weight, user, time_ = arrays.pop(LABEL), arrays.pop(WEIGHT), arrays.pop(USER), arrays.pop(TIME)
    rows = Rows({key: _compact(values) for key, values in arrays.items()}, label, weight, user, time_)
    # Beam writes rows in an order of its own; a fit must not depend on it.
    return rows.take(np.lexsort((label, time_, user)))


def read_catalogue(
    patterns: Sequence[str], features: Features, items: int, tft_output: tft.TFTransformOutput
) -> Catalogue:
    """The candidate side of the transformed items, laid out by label; items outside of the vocabulary are left out."""
    arrays = _read(patterns, [*query_inputs(features.candidate), LABEL], tft_output)
    labels = arrays.pop(LABEL)
    is_candidate = np.zeros(items + 1, bool)
    is_candidate[labels] = True
    is_candidate[0] = False
    by_label = {}
    for key, values in arrays.items():
        by_label[key] = np.zeros((items + 1, *values.shape[1:]), values.dtype)
        by_label[key][labels] = values
    return Catalogue(by_label, is_candidate)


def _read(patterns: Sequence[str], keys: Sequence[str], tft_output: tft.TFTransformOutput) -> dict[str, np.ndarray]:
    """Arrays [N, ...] of some keys of transformed examples, in the order of the files."""
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    spec = tft_output.transformed_feature_spec()
    spec = {key: spec[key] for key in keys}
    empty = {key: np.zeros((0, *feature.shape), feature.dtype.as_numpy_dtype) for key, feature in spec.items()}
    parts = [empty]
    for compression in ("GZIP", ""):
        chosen = [file for file in files if file.endswith(".gz") == (compression == "GZIP")]
        records = tf.data.TFRecordDataset(chosen, compression_type=compression)
        parts += records.batch(_READ_BATCH).map(lambda batch: tf.io.parse_example(batch, spec)).as_numpy_iterator()
    return {key: np.concatenate([part[key] for part in parts]) for key in spec}


@dataclass(frozen=True)
class Rows:
    """Transformed examples in memory: arrays [N, ...] by feature key, and [N] `label`, `weight`, `user` and `time`."""

    features: Mapping[str, np.ndarray]
    label: np.ndarray
    weight: np.ndarray
    user: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, chosen: np.ndarray) -> Rows:
        features = {key: values[chosen] for key, values in self.features.items()}
        return Rows(features, self.label[chosen], self.weight[chosen], self.user[chosen], self.time[chosen])

    def __add__(self, other: Rows) -> Rows:
        both = {key: np.concatenate([values, other.features[key]]) for key, values in self.features.items()}
        label, weight = np.append(self.label, other.label), np.append(self.weight, other.weight)
        return Rows(both, label, weight, np.append(self.user, other.user), np.append(self.time, other.time))


@dataclass(frozen=True)
class Catalogue:
    """Transformed candidate features by label, [V + 1, ...]; row 0 and items without a row are no candidates."""

    features: Mapping[str, np.ndarray]
    is_candidate: np.ndarray


@dataclass(frozen=True)
class Problem:
    """All that a fit needs, whatever it was read from."""

    features: Features
    columns: Columns
    model: Model
    training: Training
    cardinalities: Mapping[str, int]
    item_rows: int
    catalogue: Catalogue

    def build(self, rows: Rows, factors: linear.Factors | None) -> TwoTower:
        """New towers, with item biases from the rows that they will be fitted on, and the closed-form part."""
        known = len(self.catalogue.is_candidate)
        frequency = np.bincount(rows.label, minlength=known).astype(np.float32)
        if factors is not None:
            # Items that the closed form does not cover have rows of zeros.
            factors = linear.Factors(_rows_up_to(factors.history, self.item_rows), _rows_up_to(factors.items, known))
        return TwoTower(
            self.features, self.columns, self.model, self.training, self.cardinalities, self.item_rows,
            self.catalogue.features, self.catalogue.is_candidate, frequency, factors, self.training.seed,
        )  # fmt: skip

    def setting(self, name: str) -> float:
        """The value of `model.…` or `training.…`."""
        section, _, key = name.partition(".")
        return getattr(getattr(self, section), key)

    def with_settings(self, values: Mapping[str, Any]) -> Problem:
        """The same problem under other values of `model.…` and `training.…`."""
        sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
        for name, value in values.items():
            section, _, key = name.partition(".")
            sections[section][key] = value
        return replace(
            self,
            model=Model.model_validate(self.model.model_dump() | sections["model"]),
            training=Training.model_validate(self.training.model_dump() | sections["training"]),
        )

    @property
    def candidates(self) -> np.ndarray:
        """Labels of the items that can be an answer."""
        return np.flatnonzero(self.catalogue.is_candidate)


@dataclass(frozen=True)
class Chosen:
    """What the validation queries chose, beside the number of epochs; a refit takes it over."""

    ridge: float = _RIDGES[1]
    now: float = _NOW[0]
    gains: Mapping[str, float] = field(default_factory=dict)
    """Values of the query tower's numbers, by name (`_CHOICES`)."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; validation figures are NaN without validation rows."""

    loss: float
    ndcg: float
    recall: float
    factorized_top_k: float
    seconds: float


def fit(
    problem: Problem,
    train: Rows,
    validation: Rows | None,
    checkpoint: str | None = None,
    log_dir: str | None = None,
    start: Start | None = None,
) -> tuple[TwoTower, dict[str, Any]]:
    """Fits with early stopping on the validation rows, then again on all rows (`training.refit`).

    A fit that was killed goes on after its last whole epoch when called again with the same `checkpoint` directory, and
    ends with the very same weights.

    Returns:
        The model and a report: epochs, metrics by epoch, what validation chose, seconds.

    Raises:
        UserError: There is nothing to fit, or the loss is not a number any more.
    """
    settings = problem.training
    train = train.take(_trainable(train, problem.catalogue))
    if not len(train):
        raise UserError(
            "training: no row of the train split has an item of the items table; check the split and the ids"
        )
    queries = None
    if validation is not None and len(validation):
        validation = validation.take(_trainable(validation, problem.catalogue))
        if len(validation):
            queries = validation_queries(train, validation, problem)
        else:
            _PROGRESS.info("no validation row has an item that the train split knows: nothing to stop by, all epochs")
    started = time.monotonic()
    with _deterministic():
        where = checkpoint and os.path.join(checkpoint, "fit" if queries is None else "search")
        search = _Run(problem, train, queries, settings.epochs, where, log_dir, start=start)
        search.train()
        if queries is None or validation is None or not settings.refit:
            return search.model, search.report(started)
        final = _Run(
            problem, train + validation, None, search.best + 1, checkpoint and os.path.join(checkpoint, "refit"),
            log_dir and os.path.join(log_dir, "refit"), search.chosen, start,
        )  # fmt: skip
        final.train()
        return final.model, search.report(started)


def _trainable(rows: Rows, catalogue: Catalogue) -> np.ndarray:
    """Indices of the rows whose item can be an answer."""
    return np.flatnonzero(catalogue.is_candidate[rows.label])


class _Run:
    """One fit from scratch, epoch by epoch; each epoch's randomness depends on the seed and its number only."""

    def __init__(
        self,
        problem: Problem,
        rows: Rows,
        queries: Queries | None,
        epochs: int,
        checkpoint: str | None,
        log_dir: str | None,
        chosen: Chosen | None = None,
        start: Start | None = None,
    ) -> None:
        self._problem, self._rows = problem, rows
        self._judge = Judge(queries, problem.candidates, problem.training.metric_k) if queries is not None else None
        self._limit = epochs
        self.chosen = chosen or Chosen()
        self.final = (math.nan, math.nan)
        self._writer = tf.summary.create_file_writer(log_dir) if log_dir else None
        self.epochs: list[Epoch] = []
        self.resumed_from = 0
        # Whole histories stand behind the rows, for those read as COMPLETION.
        self._groups = user_groups(rows)
        data, factors = rows, None
        if problem.features.history is not None:
            wholes = whole_histories(rows, self._groups, problem)
            data = rows + replace(wholes, weight=wholes.weight * completion_weights(self._groups, problem.training))
            factors = self._solve(wholes) if problem.model.linear_rank else None
        self.model = problem.build(rows, factors)
        self.taken_over = start.apply(self.model) if start else []
        self._choose(self.chosen.gains)
        self._first_gains = self._gains()
        self._set_trend(self.chosen.now)
        self._blend = None
        if self._judge is not None:
            self._blend = Blend(self._judge, self.model.query_tower, self._candidate_vectors())
        settings = problem.training
        self._optimizer = tf_keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
        self._optimizer.exclude_from_weight_decay(var_names=list(NO_DECAY))
        self._optimizer.build(self.model.trainable_variables)
        self.model.compile(optimizer=self._optimizer)
        self._averages = [tf.Variable(v, trainable=False) for v in self.model.trainable_variables]
        self._best_weights = [tf.Variable(v, trainable=False) for v in self.model.variables]
        self._state = tf.Variable("[]", dtype=tf.string, trainable=False)
        kept = tf.train.Checkpoint(
            model=self.model, optimizer=self._optimizer, averages=self._averages, best=self._best_weights,
            state=self._state,
        )  # fmt: skip
        self._saver = tf.train.CheckpointManager(kept, checkpoint, max_to_keep=1) if checkpoint else None
        self._data = {key: tf.constant(values) for key, values in data.features.items()}
        self._data |= {LABEL: tf.constant(data.label), WEIGHT: tf.constant(data.weight)}
        # TFRS's task is written for autograph, nothing else of a step is, and translating the source takes seconds.
        self._step = tf.function(
            self._train_step, input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32)],
            autograph=not self.model.full_softmax,
        )  # fmt: skip

    @property
    def best(self) -> int:
        """Number of the best epoch so far, from 0; the first of equals."""
        ndcg = [epoch.ndcg for epoch in self.epochs]
        return len(ndcg) - 1 if self._judge is None else int(np.argmax(ndcg))

    def train(self) -> None:
        self._restore()
        while len(self.epochs) < self._limit and not self._is_stale():
            number = len(self.epochs)
            epoch = self._epoch(number)
            self.epochs.append(epoch)
            self._say(number, epoch)
            if self._saver is not None:
                self._state.assign(json.dumps([vars(e) for e in self.epochs]))
                self._saver.save(number)
        _assign(self.model.variables, self._best_weights)
        catalogue = self._problem.catalogue
        self.model.candidate_tower.learn_unknown(
            catalogue.features, catalogue.is_candidate, self._problem.training.seed
        )
        if self._problem.features.history is not None:
            self._learn_no_history()
        self._calibrate()

    def report(self, started: float) -> dict[str, Any]:
        return {
            "epochs": self.best + 1,
            "resumed_from_epoch": self.resumed_from,
            "seconds": round(time.monotonic() - started, 2),
            "history": [vars(epoch) for epoch in self.epochs],
            "chosen": vars(self.chosen),
            "taken_over": self.taken_over,
            "ndcg": self.final[0],
            "recall": self.final[1],
        }

    def _learn_no_history(self) -> None:
        """Every user counts alike: who comes new is one, however much they will take up."""
        _, first, counts = np.unique(self._groups, return_index=True, return_counts=True)
        rng = np.random.default_rng(self._problem.training.seed)
        some = self._rows.take(np.sort(rng.permutation(first)[:_USERS_WITHOUT_HISTORY]))
        size = len(self._problem.catalogue.is_candidate)
        share = np.bincount(self._rows.label, 1.0 / counts[self._groups], minlength=size)
        self.model.learn_no_history(some.features, share)

    def _is_stale(self) -> bool:
        return bool(self.epochs) and len(self.epochs) - 1 - self.best >= self._problem.training.patience

    def _restore(self) -> None:
        if self._saver is not None and self._saver.restore_or_initialize():
            self.epochs = [Epoch(**e) for e in json.loads(self._state.numpy())]
            self.resumed_from = len(self.epochs)

    def _epoch(self, number: int) -> Epoch:
        started = time.monotonic()
        settings = self._problem.training
        # Without a history there is nothing to complete.
        completion = 0.0 if self._problem.features.history is None else settings.completion
        rows, users = draw_rows(self._groups, settings.model_copy(update={"completion": completion}), number)
        order = np.random.default_rng([settings.seed, number, 1]).permutation(np.append(rows, len(self._rows) + users))
        losses = []
        for step, start in enumerate(range(0, len(order), settings.batch_size)):
            chosen = tf.constant(order[start : start + settings.batch_size], tf.int32)
            losses.append(self._step(chosen, tf.constant([settings.seed + 1000 * number, 100 * step], tf.int32)))
        loss = float(np.mean([value.numpy() for value in losses])) if losses else 0.0
        if not math.isfinite(loss):
            raise UserError(
                f"training: the loss is not a number any more in epoch {number + 1}; "
                f"lower training.learning_rate (it is {settings.learning_rate:g})"
            )
        # What is validated and kept are the averaged weights; the fit goes on from the last ones.
        last = [v.numpy() for v in self.model.trainable_variables]
        _assign(self.model.trainable_variables, self._averages)
        metrics = dict.fromkeys(("ndcg", "recall", "factorized_top_k"), math.nan)
        if self._judge is not None:
            metrics = self._validate()
        if self._judge is None or metrics["ndcg"] > max((e.ndcg for e in self.epochs), default=-1.0):
            _assign(self._best_weights, self.model.variables)
        _assign(self.model.trainable_variables, last)
        return Epoch(loss=loss, seconds=time.monotonic() - started, **metrics)

    def _train_step(self, indices: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        batch = {key: tf.gather(values, indices) for key, values in self._data.items()}
        reading = tf.where(indices < len(self._rows), NEXT, COMPLETION)
        loss = self.model.train_step(batch | {"reading": reading, "seed": seed})["loss"]
        # The first steps move fast and are forgotten sooner.
        step = tf.cast(self._optimizer.iterations, tf.float32)
        kept = tf.minimum(self._problem.training.averaging, step / (10.0 + step))
        for average, variable in zip(self._averages, self.model.trainable_variables, strict=True):
            average.assign(kept * average + (1.0 - kept) * variable)
        return loss

    def _validate(self) -> dict[str, float]:
        """Metrics; every few epochs what weighs the parts of a query is chosen first.

        The choice begins anew each time: after an epoch the closed-form part would win over a learned part that knows
        little yet, and what was chosen then would hide what is learned later.
        """
        assert self._blend is not None
        candidates = self._candidate_vectors()
        self._blend.take(candidates)
        if len(self.epochs) % _CLIMB_EVERY == 0:
            self._choose(self._first_gains)
            ndcg, recall = self._climb(self._blend, rounds=1)
        else:
            ndcg, recall = self._blend.measure()
        return {
            "ndcg": float(ndcg.mean()), "recall": float(recall.mean()),
            "factorized_top_k": self._factorized_top_k(self._blend.vectors(), candidates),
        }  # fmt: skip

    def _calibrate(self) -> None:
        """Lets the validation queries choose all the numbers of the query tower, and what the trend calls now."""
        if self._blend is None:
            return
        before, results = self._gains(), []
        self._blend.take(self._candidate_vectors())
        for now in _NOW:
            self._choose(before)
            self._set_trend(now)
            self._blend.take_trend(self._candidate_vectors())
            results.append((*self._climb(self._blend, rounds=3), now, self._gains()))
        best = results[0]
        for other in results[1:]:
            if surely_better(other[0], best[0]):
                best = other
        ndcg, recall, now, gains = best
        self.final = float(ndcg.mean()), float(recall.mean())
        self._set_trend(now)
        self._choose(gains)
        self.chosen = replace(self.chosen, now=now, gains=gains)

    def _candidate_vectors(self) -> np.ndarray:
        return self.model.candidate_vectors(tf.constant(self._problem.candidates, tf.int32)).numpy()

    def _numbers(self) -> dict[str, tf.Variable]:
        """The query tower's numbers that have an effect."""
        tower, has_history = self.model.query_tower, self._problem.features.history is not None
        numbers: dict[str, tf.Variable] = {}
        if self._problem.model.trend:
            numbers["trend_gain"] = tower.trend_gain
            if has_history:
                numbers["cold_trend_gain"] = tower.cold_trend_gain
        if has_history:
            numbers["recency"] = tower.recency
        if has_history and self._problem.model.linear_rank:
            numbers |= {"linear_recency": tower.linear_recency, "linear_gain": tower.linear_gain}
        return numbers

    def _gains(self) -> dict[str, float]:
        return {name: float(variable.numpy()) for name, variable in self._numbers().items()}

    def _choose(self, gains: Mapping[str, float]) -> None:
        for name, value in gains.items():
            self._numbers()[name].assign(value)

    def _climb(self, blend: Blend, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        """Moves each number to where it is best while that is worth the steps.

        Returns:
            NDCG and recall of the queries at the end, [Q] each.
        """
        numbers = self._numbers()
        names = list(numbers)
        known: dict[tuple[float, ...], tuple[np.ndarray, np.ndarray]] = {}

        def measure() -> tuple[np.ndarray, np.ndarray]:
            values = tuple(self._gains().values())
            if values not in known:
                known[values] = blend.measure()
            return known[values]

        best = measure()
        history = self._problem.features.history
        if history is not None and np.all(np.any(blend.queries.features[history.column] > 0, axis=1)):
            # Nobody asks without a history: every value would do as well.
            names = [name for name in names if name != "cold_trend_gain"]
        for _ in range(rounds):
            before = best[0].mean()
            for name in names:
                choices, variable = _CHOICES[name], numbers[name]
                kept = float(variable.numpy())
                start = int(np.argmin(np.abs(np.array(choices) - kept)))
                results = []
                for place, choice in enumerate(choices):
                    variable.assign(choice)
                    result = measure()
                    worth = result[0].mean() - best[0].mean() * _WORTH * abs(place - start)
                    results.append((worth, result, choice))
                worth, result, choice = max(results, key=lambda found: found[0])
                if worth > best[0].mean():
                    best = result
                    variable.assign(choice)
                else:
                    variable.assign(kept)
            if best[0].mean() == before:
                break
        return best

    def _solve(self, wholes: Rows) -> linear.Factors | None:
        """The closed-form part, under the ridge with the best NDCG on the validation queries."""
        problem = self._problem
        history = problem.features.history
        assert history is not None
        owned = np.concatenate([wholes.label[:, np.newaxis], wholes.features[history.column]], axis=1)
        items = min(len(problem.catalogue.is_candidate) - 1, problem.model.linear_items)
        moments = linear.moments(owned, items, _DECAY, problem.training.seed)
        rank = problem.model.linear_rank
        if self._judge is None:
            return linear.factors(moments, linear.solve(moments, self.chosen.ridge), rank)
        labels, results = problem.candidates, []
        for ridge in _RIDGES:
            factors = linear.factors(moments, linear.solve(moments, ridge), rank)
            table = _rows_up_to(factors.history, problem.item_rows)
            candidates = _rows_up_to(factors.items, len(problem.catalogue.is_candidate))[labels]
            for recency in _CHOICES["linear_recency"]:
                vectors = _recency_weights(self._judge.queries.features[history.column], recency, len(table)) @ table
                ndcg, _ = self._judge.rank(vectors, candidates)
                results.append((ndcg.mean(), ridge, recency, factors))
        _, ridge, recency, factors = max(results, key=lambda result: result[0])
        self.chosen = replace(self.chosen, ridge=ridge, gains={"linear_recency": recency})
        return factors

    def _set_trend(self, now: float) -> None:
        rows = self._rows
        self.model.candidate_tower.trend.assign(trend(rows.label, rows.time, now, self._problem.catalogue))

    def _factorized_top_k(self, vectors: np.ndarray, candidates: np.ndarray) -> float:
        """TFRS's own metric: is the true item in the top k of the whole catalogue, seen items kept."""
        assert self._judge is not None
        labels, relevant = self._judge.labels, self._judge.queries.relevant
        k = min(self._problem.training.metric_k, len(labels))
        index = tfrs.layers.factorized_top_k.BruteForce(k=k).index(
            tf.constant(candidates), tf.constant(labels, tf.int64)
        )
        metric = tfrs.metrics.FactorizedTopK(candidates=index, ks=(k,))
        rows, columns = np.nonzero(relevant)
        rows, true = rows[:_VALIDATION_QUERIES], relevant[rows, columns][:_VALIDATION_QUERIES].astype(np.int64)
        for start in range(0, len(rows), _READ_BATCH):
            part = slice(start, start + _READ_BATCH)
            # Validation rows of items that are no candidates are left out of the queries.
            of_true = candidates[np.searchsorted(labels, true[part])]
            metric.update_state(vectors[rows[part]], of_true, true_candidate_ids=tf.constant(true[part]))
        return float(metric.result()[0])

    def _say(self, number: int, epoch: Epoch) -> None:
        k = self._problem.training.metric_k
        words = f"epoch {number + 1}/{self._limit} · loss {epoch.loss:.3f}"
        if self._judge is not None:
            words += f" · ndcg@{k} {epoch.ndcg:.4f} · recall@{k} {epoch.recall:.4f}"
        _PROGRESS.info("%s · %.1f s", words, epoch.seconds)
        if self._writer is not None:
            with self._writer.as_default(step=number):
                tf.summary.scalar("loss", epoch.loss)
                if self._judge is not None:
                    tf.summary.scalar(f"ndcg@{k}", epoch.ndcg)
                    tf.summary.scalar(f"recall@{k}", epoch.recall)
                    tf.summary.scalar(f"factorized_top_k/top_{k}", epoch.factorized_top_k)
            self._writer.flush()


# Biases and constants are few and well determined; decay would only pull them off the data.
NO_DECAY = ("item_bias", "history_scale", "constant")


def user_groups(rows: Rows) -> np.ndarray:
    """Number of the user of each row, [N], from 0."""
    return np.unique(rows.user, return_inverse=True)[1]


def whole_histories(rows: Rows, groups: np.ndarray, problem: Problem) -> Rows:
    """One row for each user, in the order of the group numbers: the latest one, owning everything the user took up.

    The latest row is the one that owns most, and of those with a full history the one whose item is the newest of no
    other. Where its history lacks items of the user's other rows (validation rows beside train rows), they go in front.
    """
    history = problem.features.history
    assert history is not None
    histories = rows.features[history.column]
    latest, owned = [], np.zeros((groups.max() + 1 if len(groups) else 0, histories.shape[1] + 1), histories.dtype)
    found = _by_group(groups)
    for place, own in enumerate(found.values()):
        labels = rows.label[own]
        is_open = ~np.isin(labels, histories[own, 0])
        last = own[np.argmax(2 * np.count_nonzero(histories[own], axis=1) + is_open)]
        whole = np.append(rows.label[last], histories[last])
        whole = whole[whole > 0]
        # Each item once, at its newest place.
        whole = whole[np.sort(np.unique(whole, return_index=True)[1])]
        if len(whole) < histories.shape[1]:
            whole = np.append(np.setdiff1d(labels, whole), whole)
        whole = whole[: owned.shape[1]]
        owned[place, : len(whole)] = whole
        latest.append(last)
    owned = owned[: len(found)]
    wholes = rows.take(np.array(latest, np.int64))
    return Rows(
        {**wholes.features, history.column: owned[:, 1:]},
        owned[:, 0].astype(np.int64), wholes.weight, wholes.user, wholes.time,
    )  # fmt: skip


def draw_rows(groups: np.ndarray, training: Training, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """What an epoch trains on: rows [R] that are read as NEXT, and users [C] whose whole history is completed.

    A user with n rows counts n ** user_exponent, of which the share `completion` goes to COMPLETION. Rows under NEXT
    are drawn with that probability. Whole histories come up equally often, and `completion_weights` makes the
    difference: drawn by weight, light users would be seen too rarely.
    """
    rng = np.random.default_rng([training.seed, epoch])
    _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
    kept = rng.random(len(groups)) < (1 - training.completion) * counts[number] ** (training.user_exponent - 1.0)
    times = training.completion * np.mean(counts**training.user_exponent)
    times = np.floor(times + rng.random(len(counts))).astype(np.int64)
    return np.flatnonzero(kept), np.repeat(np.arange(len(counts)), times)


def completion_weights(groups: np.ndarray, training: Training) -> np.ndarray:
    """Weight of each user's whole history, [U] float32 with mean 1: n ** user_exponent for n rows."""
    _, counts = np.unique(groups, return_counts=True)
    weights = counts**training.user_exponent
    return (weights / weights.mean()).astype(np.float32)


def validation_queries(train: Rows, validation: Rows, problem: Problem) -> Queries:
    """What the validation rows ask, put as the evaluation puts it.

    One query for each user with validation rows (at most 10,000 users): the features of the user's first validation
    row, everything in train as history, all of the user's validation items relevant. Without a history feature each
    row is a query. The rows' items are candidates.
    """
    history = problem.features.history
    rng = np.random.default_rng(problem.training.seed)
    if history is None:
        drawn = validation.take(np.sort(rng.permutation(len(validation))[:_VALIDATION_QUERIES]))
        return Queries(drawn.features, drawn.label[:, np.newaxis], np.zeros([len(drawn), 1], np.int64))
    age = problem.features.history_age
    groups = user_groups(train + validation)
    train_of, validation_of = _by_group(groups[: len(train)]), _by_group(groups[len(train) :])
    wholes = whole_histories(train, groups[: len(train)], problem)
    place = {group: number for number, group in enumerate(train_of)}
    first, histories, ages, relevant, seen = [], [], [], [], []
    for group in rng.permutation(sorted(validation_of))[:_VALIDATION_QUERIES].tolist():
        rows = validation_of[group]
        lengths = np.count_nonzero(validation.features[history.column][rows], axis=1)
        first.append(rows[np.argmin(lengths)])
        newest = validation.features[history.column][first[-1]].astype(np.int64)
        if group in place:
            own = place[group]
            newest[:] = np.append(wholes.label[own], wholes.features[history.column][own])[: history.max_length]
            ages.append(max(0, validation.time[first[-1]] - train.time[train_of[group]].max()))
        else:
            ages.append(0 if age is None else validation.features[age.column][first[-1]])
        histories.append(newest)
        relevant.append(np.unique(validation.label[rows]))
        seen.append(np.unique(np.append(train.label[train_of.get(group, np.zeros(0, np.int64))], newest[newest > 0])))
    features = {**validation.take(np.array(first, np.int64)).features, history.column: np.stack(histories)}
    if age is not None:
        features[age.column] = np.array(ages, np.float32)
    return Queries(features, _padded(relevant), _padded(seen))


def _by_group(keys: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    groups, starts = np.unique(keys[order], return_index=True)
    return dict(zip(groups.tolist(), np.split(order, starts[1:]), strict=True))


def _padded(lists: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.zeros([len(lists), max(map(len, lists))], np.int64)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    return padded


def surely_better(ndcg: np.ndarray, other: np.ndarray) -> bool:
    """Whether the mean of [Q] values is above that of others for the same queries by `_SURE` standard errors."""
    gained = ndcg - other
    return len(gained) > 1 and bool(gained.mean() > _SURE * gained.std(ddof=1) / math.sqrt(len(gained)))


def trend(labels: np.ndarray, times: np.ndarray, now: float, catalogue: Catalogue) -> np.ndarray:
    """[V + 1] log of an item's share of the interactions of now over its share of all of them.

    Args:
        labels: [N] items of the rows.
        times: [N] seconds.
        now: Which share of the rows, the latest ones, is now.
        catalogue: Items that are no candidates have no trend.
    """
    size = len(catalogue.is_candidate)
    share = np.bincount(labels, minlength=size) + 0.5
    share /= share.sum()
    latest = labels[np.argsort(times, kind="stable")[-max(1, round(now * len(labels))) :]]
    prior = _TREND_PRIOR * len(latest)
    recent = (np.bincount(latest, minlength=size) + prior * share) / (len(latest) + prior)
    return np.where(catalogue.is_candidate, np.log(recent / share), 0.0).astype(np.float32)


def _recency_weights(history: np.ndarray, recency: float, items: int) -> scipy.sparse.csr_matrix:
    """[Q, items] weights of the items of histories [Q, H], as two_tower.QueryTower.linear has them."""
    present = history > 0
    row, place = np.nonzero(present)
    rank = (np.cumsum(present, axis=1) - 1)[row, place]
    return scipy.sparse.csr_matrix(((1.0 + rank) ** -recency, (row, history[row, place])), (len(history), items))


def _rows_up_to(table: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([table, np.zeros((rows - len(table), table.shape[1]), np.float32)])


def _assign(variables: Sequence[tf.Variable], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _compact(values: np.ndarray) -> np.ndarray:
    """Ids as int32: half the memory, and vocabularies are far below 2³¹."""
    return values.astype(np.int32) if values.dtype == np.int64 else values


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Same seed, same weights: only here, since it would slow down whatever else runs in the process."""
    before = framework_config.is_op_determinism_enabled()
    tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        if not before:
            framework_config.disable_op_determinism()
