"""The fit: epochs with early stopping, then a refit on everything; a killed one goes on to the very same weights."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras
from tensorflow.python.framework import config as framework_config

from modules import item_item
from modules.errors import UserError
from modules.towers.two_tower import TwoTower, asks_all_places
from modules.training import sampling
from modules.training.calibration import (
    Blend,
    Calibration,
    PartScores,
    Ranker,
    choose_item_item,
    choose_window,
    coordinate_ascent,
    new_item_log_odds,
    new_item_offset,
    surely_better,
)
from modules.training.checkpoints import Checkpoints
from modules.training.dataset import Queries, Specification
from modules.training.distribution import Distribution
from modules.training.lazy_adamw import LazyAdamW
from modules.training.report import Epoch, Fit, Report
from modules.training.stream import Train
from modules.training.training_data import Step, TrainingData
from modules.training.warm_start import WarmStart

_PROGRESS = logging.getLogger("twotower.progress")
# Blend weights are chosen anew in every third epoch: each time takes as long as an epoch's steps on MovieLens-100K.
_CALIBRATE_EVERY = 3
# Candidates whose vectors are computed at once: on the way there are several times as many numbers.
_CANDIDATES_AT_ONCE = 20_000
# Standard errors by which an epoch must be better than the last one that gained, to gain itself: where validation is
# flat some epoch is always the best so far, by luck (docs/benchmarks.md).
_GAIN = 0.75
# Rounds of coordinate ascent after the last epoch, at most: it ends when a round moves nothing.
_ROUNDS = 3
# A refit that goes on from the search's weights takes this share of its epochs.
_GO_ON = 0.25
# Biases and constants are few and well determined; decay would only pull them off the data.
NO_DECAY = ("item_bias", "history_scale", "constant")


def fit(
    specification: Specification,
    train: Train,
    queries: Queries | None,
    checkpoint: str | None = None,
    log_dir: str | None = None,
    warm_start: WarmStart | None = None,
    distribution: Distribution | None = None,
) -> Fit:
    """Fits with early stopping on the validation queries, then again on all interactions (`training.refit`).

    The search leaves out the interactions that belong to validation. A fit that was killed goes on after its last whole
    epoch when called again with the same `checkpoint` directory, and ends with the very same weights. From a checkpoint
    whose layout is another, as older code wrote it, nothing is taken.

    Args:
        specification: Settings and catalogue.
        train: The sequences of all users.
        queries: What validation asks; None fits on everything, all epochs.
        checkpoint: A folder for the state after each epoch.
        log_dir: A folder for TensorBoard.
        warm_start: A pushed model to start from.
        distribution: The replicas that share the steps; None: this process alone, on one device. Where other processes
            take part, each calls this with the same specification, train and queries; `checkpoint`, `log_dir` and
            `warm_start` are looked at on the chief only, and only there the model is whole in the end.

    Raises:
        UserError: There is nothing to fit, or the loss is not a number any more.
    """
    started = time.monotonic()
    replicas = distribution or Distribution()
    if not replicas.is_chief:
        checkpoint = log_dir = warm_start = None

    def run(
        name: str,
        specification: Specification,
        train: Train,
        asked: Queries | None,
        epochs: int,
        chosen: Calibration | None = None,
        start: Sequence[np.ndarray] | None = None,
    ) -> Fit:
        logs = log_dir and (log_dir if name in ("fit", "search") else os.path.join(log_dir, name))
        where = checkpoint and os.path.join(checkpoint, name)
        return _Run(specification, train, asked, epochs, where, logs, chosen, warm_start, start, replicas).run(started)

    settings = specification.training
    with _deterministic() if settings.deterministic else contextlib.nullcontext():
        if queries is None:
            return run("fit", _with_encoder(specification, _encoders(specification)[0]), train, None, settings.epochs)
        search: Fit | None = None
        encoders: dict[str, float] = {}
        for encoder in _encoders(specification):
            name = f"search-{encoder}" if encoders else "search"
            if specification.model.history_encoder == "auto":
                _PROGRESS.info("history encoder: fitting the %s", encoder)
            of_encoder = _with_encoder(specification, encoder)
            tried = run(name, of_encoder, train.without_validation(), queries, settings.epochs)
            # Workers know no figures, and must choose the same.
            encoders[encoder] = float(replicas.from_chief([tried.report.of(settings.metric)])[0])
            chosen = max(encoders, key=encoders.__getitem__)
            if chosen == encoder:
                search = tried
            del tried
            gc.collect()
        assert search is not None
        specification = _with_encoder(specification, chosen)
        if len(encoders) > 1:
            seconds = round(time.monotonic() - started, 2)
            search = replace(search, report=replace(search.report, encoders=encoders, seconds=seconds))
            _PROGRESS.info(
                "history encoder: %s", ", ".join(f"{e} {settings.criterion} {v:.4f}" for e, v in encoders.items())
            )
        if not settings.refit:
            return search
        report, epochs, start = search.report, search.report.epochs, None
        steps = sampling.expected_steps(train.counts, settings.user_exponent, settings.batch_size)
        if not settings.refits_anew(epochs, steps):
            epochs, start = math.ceil(_GO_ON * epochs), [v.numpy() for v in search.model.trainable_variables]
        del search
        gc.collect()  # The search's tables and their moments would stand beside the refit's.
        final = run("refit", specification, train, None, epochs, report.calibration, start)
        return Fit(final.model, replace(report, seconds=round(time.monotonic() - started, 2), saw_validation=True))


def _encoders(specification: Specification) -> tuple[str, ...]:
    """The history encoders that `model.history_encoder` comes to."""
    if specification.model.history_encoder != "auto":
        return (specification.model.history_encoder,)
    return ("mean", "transformer") if specification.features.history is not None else ("mean",)


def _with_encoder(specification: Specification, encoder: str) -> Specification:
    if encoder == specification.model.history_encoder:
        return specification
    return specification.with_settings({"model.history_encoder": encoder})


class _Run:
    """One fit from scratch, epoch by epoch; each epoch's randomness depends on the seed and its number only."""

    def __init__(
        self,
        specification: Specification,
        train: Train,
        queries: Queries | None,
        epochs: int,
        checkpoint: str | None,
        log_dir: str | None,
        chosen: Calibration | None,
        warm_start: WarmStart | None,
        start: Sequence[np.ndarray] | None,
        distribution: Distribution,
    ) -> None:
        self._specification, self._limit, self._distribution = specification, epochs, distribution
        settings, catalogue = specification.training, specification.catalogue
        self._metric = settings.metric
        self._ranker = Ranker(queries, catalogue.labels, settings.metric_k) if queries is not None else None
        calibration = chosen or Calibration.default(specification.model, settings)
        self._data = TrainingData(specification, train)
        factors = None
        if specification.features.history is not None and specification.model.item_item_rank:
            solved = choose_item_item(specification, self._data.totals.item_item, self._ranker, calibration.ridge)
            factors, calibration = solved.factors, replace(calibration, ridge=solved.ridge)
        with distribution.scope():
            self.model = _build(specification, self._data.frequency, factors)
        self._warm_started = warm_start.apply(self.model) if warm_start else ()
        if start is not None:
            _assign(self.model.trainable_variables, start)
        if calibration.weights is None:
            weights = self.model.query_tower.blend
            if factors is not None and solved.recency is not None:
                weights = replace(weights, item_item_recency=solved.recency)
            calibration = replace(calibration, weights=weights)
        self._start = calibration
        self._set(calibration)
        self._item_item_scores: PartScores | None = None
        steps = self._data.steps
        weight_decay = settings.weight_decay_of(steps, asks_all_places(specification.features, specification.model))
        self._patience = settings.patience_of(steps)
        with distribution.scope():
            self._optimizer = LazyAdamW(settings.learning_rate, weight_decay, settings.averaging, NO_DECAY)
            self._optimizer.build_lazy(self.model.trainable_variables, self.model.tables_by_row)
            self.model.compile(optimizer=self._optimizer)
            # With `num_updates` the first steps, which move fast, are forgotten sooner.
            self._average = tf.train.ExponentialMovingAverage(settings.averaging, self._optimizer.iterations)
            # The first call makes the averages, which a checkpoint must know, at the initial values.
            self._average.apply(self._dense)
        self._board = None
        if log_dir:
            self._board = tf_keras.callbacks.TensorBoard(log_dir, write_graph=False)
            self._board.set_model(self.model)
            self._board.on_train_begin()
        self._best_weights = [tf.Variable(v, trainable=False) for v in self._chosen]
        asked = len(queries) if queries is not None else 0
        self._gained = tf.Variable(tf.zeros([asked]), trainable=False)  # The metric of the last epoch that gained.
        self._checkpoints = Checkpoints(
            checkpoint, model=self.model, optimizer=self._optimizer, averages=self._averages, best=self._best_weights,
            gained=self._gained,
        )  # fmt: skip
        self._epochs: list[Epoch] = []
        self._resumed_from = 0
        # TFRS's task is written for autograph, nothing else of a step is, and translating the source takes seconds.
        self._step = tf.function(
            self._train_step,
            input_signature=[self._data.signature],
            autograph=self.model.negatives == "in_batch",
        )

    def run(self, started: float) -> Fit:
        """All epochs, then what is fitted and chosen after them.

        Args:
            started: `time.monotonic()` at the beginning of the whole fit.
        """
        self._restore()
        while len(self._epochs) < self._limit and not self._is_stale():
            number = len(self._epochs)
            epoch = self._epoch(number)
            self._epochs.append(epoch)
            self._say(number, epoch)
            self._checkpoints.save(self._epochs)
        if self._board is not None:
            self._board.on_train_end()
        _assign(self._chosen, self._best_weights)
        is_chief = self._distribution.is_chief
        calibration, ndcg, recall = self._complete() if is_chief else (self._start, math.nan, math.nan)
        report = Report(
            epochs=self._best + 1,
            resumed_from_epoch=self._resumed_from,
            seconds=round(time.monotonic() - started, 2),
            history=tuple(self._epochs),
            calibration=calibration,
            warm_started=self._warm_started,
            ndcg=ndcg,
            recall=recall,
            criterion=self._specification.training.criterion,
            saw_validation=self._ranker is None,
        )
        return Fit(self.model, report)

    def _complete(self) -> tuple[Calibration, float, float]:
        """Fits what depends on the learned weights, and calibrates; NDCG and recall then."""
        catalogue, seed = self._specification.catalogue, self._specification.training.seed
        self.model.candidate_tower.fit_content(catalogue.features, catalogue.is_candidate, seed)
        if self._specification.features.history is not None:
            self.model.fit_cold_start_query(*self._data.cold_start())
        calibrated = self._calibrate()
        # What is explored is nothing that validation could judge, so that it changes no choice.
        # In log-odds, as the offset is: the temperature divides the logits.
        exploration = self._specification.training.temperature * self._specification.model.exploration
        self.model.candidate_tower.new_item_offset.assign(calibrated[0].new_item_offset + exploration)
        return calibrated

    @property
    def _best(self) -> int:
        """Number of the best epoch so far, from 0; the first of equals."""
        values = [epoch.of(self._metric) for epoch in self._epochs]
        return len(values) - 1 if self._ranker is None else int(np.argmax(values))

    @property
    def _chosen(self) -> list[tf.Variable]:
        """What differs between epochs."""
        return [*self.model.trainable_variables, *self.model.query_tower.blend_variables]

    @property
    def _dense(self) -> list[tf.Variable]:
        """The trainable variables that every step updates whole."""
        by_row = {table.ref() for table in self.model.tables_by_row}
        return [variable for variable in self.model.trainable_variables if variable.ref() not in by_row]

    @property
    def _averages(self) -> list[tf.Variable]:
        """What the moving average has of each trainable variable."""
        dense = {variable.ref() for variable in self._dense}
        return [
            self._average.average(variable) if variable.ref() in dense else self._optimizer.average(variable)
            for variable in self.model.trainable_variables
        ]

    def _is_stale(self) -> bool:
        since = next((n for n, epoch in enumerate(reversed(self._epochs)) if epoch.gained), 0)
        return since >= self._patience

    def _restore(self) -> None:
        self._epochs = self._checkpoints.restore()
        # Fresh variables are equal on all workers; what was restored, or came by a warm start, the chief has alone.
        is_fresh = not self._epochs and not self._warm_started
        if self._distribution.spans_processes and not self._distribution.from_chief(is_fresh):
            text = json.dumps([asdict(epoch) for epoch in self._epochs])
            self._epochs = [Epoch(**e) for e in json.loads(self._distribution.text_from_chief(text))]
            for variable in (*self.model.variables, *self._optimizer.variables, *self._averages, *self._best_weights):
                variable.assign(self._distribution.from_chief(variable.numpy()))
        self._resumed_from = len(self._epochs)

    def _epoch(self, number: int) -> Epoch:
        started = time.monotonic()
        settings = self._specification.training
        with self._distribution.scope():
            losses = [self._step(step) for step in self._data.epoch(number)]
        loss = float(np.mean([value.numpy() for value in losses])) if losses else 0.0
        if not math.isfinite(loss):
            raise UserError(
                f"training: the loss is not a number any more in epoch {number + 1}; "
                f"lower training.learning_rate (it is {settings.learning_rate:g})"
            )
        self._optimizer.settle(self.model.tables_by_row)
        # What is validated and kept are the averaged weights; the fit goes on from the last ones.
        last = [v.numpy() for v in self.model.trainable_variables]
        _assign(self.model.trainable_variables, self._averages)
        asks = self._ranker is not None and self._distribution.is_chief
        # Workers that stopped after different epochs would wait for each other for ever.
        measured = self._distribution.from_chief(self._validate() if asks else [math.nan] * 3 + [True])
        ndcg, recall, factorized_top_k, gained = measured.tolist()
        epoch = Epoch(loss, ndcg, recall, factorized_top_k, bool(gained), seconds=math.nan)
        before = max((e.of(self._metric) for e in self._epochs), default=-1.0)
        if self._ranker is None or epoch.of(self._metric) > before:
            _assign(self._best_weights, self._chosen)
        _assign(self.model.trainable_variables, last)
        return replace(epoch, seconds=time.monotonic() - started)

    def _train_step(self, step: Step) -> tf.Tensor:
        loss = self._distribution.run(self._replica_step, step)
        self._average.apply(self._dense)
        return loss

    def _replica_step(self, step: Step) -> tf.Tensor:
        """One replica's part of a step, and of its loss; the optimizer adds up what all replicas' gradients are."""
        batch = self._data.windows.cut(*step)._replace(share=self._distribution.share())
        return self.model.train_step(batch)["loss"]

    def _validate(self) -> tuple[float, float, float, bool]:
        """NDCG, recall, TFRS's top k and `Epoch.gained`; every few epochs the blend weights are chosen first.

        The choice begins anew each time: after an epoch the item-item model would win over a learned part that knows
        little yet, and what was chosen then would hide what is learned later.
        """
        assert self._ranker is not None
        tower, candidates = self.model.query_tower, self._candidate_vectors()
        blend = Blend.of(self._ranker, tower, candidates, self._item_item_scores)
        self._item_item_scores = blend.item_item
        if len(self._epochs) % _CALIBRATE_EVERY == 0:
            assert self._start.weights is not None
            names = blend.weights_in_use
            ascent = coordinate_ascent(blend.measure, self._metric, self._start.weights, names, rounds=1)
            tower.blend, measured = ascent.weights, ascent.measured
        else:
            measured = blend.measure(tower.blend)
        values = measured.of(self._metric).astype(np.float32)
        gained = not self._epochs or surely_better(values, self._gained.numpy(), _GAIN)
        if gained:
            self._gained.assign(values)
        return float(measured.ndcg.mean()), float(measured.recall.mean()), self._factorized_top_k(candidates), gained

    def _calibrate(self) -> tuple[Calibration, float, float]:
        """Lets the validation queries choose the blend weights and the recent window; NDCG and recall under them."""
        if self._ranker is None:
            return self._start, math.nan, math.nan
        tower, ascents = self.model.query_tower, {}
        start = tower.blend
        blend = Blend.of(self._ranker, tower, self._candidate_vectors(), self._item_item_scores)
        for window in self._specification.training.recent_windows:
            self._set_recent_window(window)
            with_window = blend.with_lift(tower.layout.lift.of(self._candidate_vectors()))
            ascents[window] = coordinate_ascent(with_window.measure, self._metric, start, blend.weights_in_use, _ROUNDS)
        window = choose_window(ascents, self._metric)
        ascent = ascents[window]
        calibration = replace(self._start, recent_window=window, weights=ascent.weights)
        self._set(calibration)
        calibration, measured = replace(calibration, new_item_offset=self._new_item_offset()), ascent.measured
        if calibration.new_item_offset:
            self._set(calibration)
            measured = self._ranker.rank(self._validation_vectors(), self._candidate_vectors())
        return calibration, float(measured.ndcg.mean()), float(measured.recall.mean())

    def _new_item_offset(self) -> float:
        """What makes new items as likely in answers as they are in validation; 0 where vectors have no bias."""
        assert self._ranker is not None
        catalogue, settings = self._specification.catalogue, self._specification.training
        is_new = ~self.model.candidate_tower.has_interactions
        if self._specification.model.normalize or not catalogue.tells_new_items:
            return 0.0
        if not (is_new[catalogue.labels].any() or catalogue.out_of_vocabulary):
            return 0.0
        candidates, relevant = self._candidate_vectors(), self._ranker.queries.relevant
        others = candidates[:0]
        if catalogue.out_of_vocabulary:
            features = {key: tf.constant(values) for key, values in catalogue.out_of_vocabulary.items()}
            others = self.model.new_item_vectors(features).numpy()
        log_odds = new_item_log_odds(
            self._ranker, self._validation_vectors(), candidates, is_new[catalogue.labels], others, catalogue.of_each,
            settings.temperature,
        )  # fmt: skip
        new = np.count_nonzero(is_new[relevant] & (relevant > 0))
        return settings.temperature * new_item_offset(log_odds, np.count_nonzero(relevant, axis=1), new)

    def _set(self, calibration: Calibration) -> None:
        assert calibration.weights is not None
        self.model.query_tower.blend = calibration.weights
        self.model.candidate_tower.new_item_offset.assign(calibration.new_item_offset)
        self._set_recent_window(calibration.recent_window)

    def _set_recent_window(self, window: float) -> None:
        self.model.candidate_tower.lift.assign(self._data.lift(window))

    def _candidate_vectors(self) -> np.ndarray:
        labels = self._specification.catalogue.labels.astype(np.int32)
        vectors = np.empty([len(labels), self.model.layout.width], np.float32)
        for start in range(0, len(labels), _CANDIDATES_AT_ONCE):
            part = slice(start, start + _CANDIDATES_AT_ONCE)
            vectors[part] = self.model.candidate_vectors(tf.constant(labels[part])).numpy()
        return vectors

    def _validation_vectors(self) -> np.ndarray:
        """[Q, D] of the validation queries."""
        assert self._ranker is not None
        features = self._ranker.queries.features
        parts = [{key: tf.constant(values[part]) for key, values in features.items()} for part in self._ranker.parts]
        return np.concatenate([self.model.query_vectors(part).numpy() for part in parts])

    def _factorized_top_k(self, candidates: np.ndarray) -> float:
        """TFRS's own metric: is the true item in the top k of the whole catalogue, seen items kept."""
        assert self._ranker is not None
        labels, queries = self._ranker.labels, self._ranker.queries
        k = min(self._specification.training.metric_k, len(labels))
        index = tfrs.layers.factorized_top_k.BruteForce(k=k).index(
            tf.constant(candidates), tf.constant(labels, tf.int64)
        )
        metric = tfrs.metrics.FactorizedTopK(candidates=index, ks=(k,))
        rows, columns = np.nonzero(queries.relevant)
        rows, true = rows[: len(queries)], queries.relevant[rows, columns][: len(queries)].astype(np.int64)
        vectors = self._validation_vectors()
        for start in range(0, len(rows), self._ranker.batch_size):
            part = slice(start, start + self._ranker.batch_size)
            of_true = candidates[np.searchsorted(labels, true[part])]
            metric.update_state(vectors[rows[part]], of_true, true_candidate_ids=tf.constant(true[part]))
        return float(metric.result()[0])

    def _say(self, number: int, epoch: Epoch) -> None:
        k = self._specification.training.metric_k
        words, logs = f"epoch {number + 1}/{self._limit} · loss {epoch.loss:.3f}", {"loss": epoch.loss}
        if self._ranker is not None:
            words += f" · ndcg@{k} {epoch.ndcg:.4f} · recall@{k} {epoch.recall:.4f}"
            logs |= {f"val_ndcg@{k}": epoch.ndcg, f"val_recall@{k}": epoch.recall}
            logs |= {f"val_factorized_top_k/top_{k}": epoch.factorized_top_k}
        _PROGRESS.info("%s · %.1f s", words, epoch.seconds)
        if self._board is not None:
            self._board.on_epoch_end(number, logs)


def _build(specification: Specification, frequency: np.ndarray, factors: item_item.Factors | None) -> TwoTower:
    """New towers, with item biases from the interactions that they will be fitted on, and the item-item model."""
    return TwoTower(
        specification.features, specification.columns, specification.model, specification.training,
        specification.cardinalities, specification.item_rows, specification.catalogue.features,
        specification.catalogue.is_candidate, frequency, factors, specification.training.seed,
    )  # fmt: skip


def _assign(variables: Sequence[tf.Variable], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


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
