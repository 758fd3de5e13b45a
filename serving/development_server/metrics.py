"""TF Serving's own metrics, in Prometheus's text format and under TF Serving's names.

Sources: servables/tensorflow/util.cc, saved_model_warmup_util.cc and util/prometheus_exporter.cc of TensorFlow Serving.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence

# Microseconds, from 10 µs to about 20 minutes: Buckets::Exponential(10, 1.8, 33) of TF Serving.
_BOUNDS = [10 * 1.8**n for n in range(32)]


class Counter:
    """A total by labels."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.name, self.labels = name, labels
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], int] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + by

    def lines(self) -> list[str]:
        with self._lock:
            values = dict(self._values)
        return [f"# TYPE {self.name} counter"] + [
            f"{self.name}{{{_labels(self.labels, key)}}} {value}" for key, value in values.items()
        ]


class Histogram:
    """A distribution of microseconds by labels."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.name, self.labels = name, labels
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def add(self, *labels: str, seconds: float) -> None:
        microseconds = 1e6 * seconds
        bucket = bisect.bisect_right(_BOUNDS, microseconds)
        with self._lock:
            self._buckets.setdefault(labels, [0] * (len(_BOUNDS) + 1))[bucket] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + microseconds

    def lines(self) -> list[str]:
        with self._lock:
            cells = [(key, list(buckets), self._sums[key]) for key, buckets in self._buckets.items()]
        lines = [f"# TYPE {self.name} histogram"]
        for key, buckets, total in cells:
            labels, count = _labels(self.labels, key), 0
            for limit, inside in zip([*(f"{bound:g}" for bound in _BOUNDS), "+Inf"], buckets, strict=True):
                count += inside
                lines.append(f'{self.name}_bucket{{{labels},le="{limit}"}} {count}')
            lines += [f"{self.name}_sum{{{labels}}} {total:g}", f"{self.name}_count{{{labels}}} {count}"]
        return lines


class Metrics:
    """Everything that the server counts."""

    def __init__(self) -> None:
        self.request_count = Counter(":tensorflow:serving:request_count", ("model_name", "status"))
        self.request_latency = Histogram(":tensorflow:serving:request_latency", ("model_name", "API", "entrypoint"))
        self.runtime_latency = Histogram(":tensorflow:serving:runtime_latency", ("model_name", "API", "runtime"))
        self.load_attempts = Counter(":tensorflow:cc:saved_model:load_attempt_count", ("model_path", "status"))
        self.load_latency = Histogram(":tensorflow:cc:saved_model:load_latency", ("model_path",))
        self.warmup_latency = Histogram(":tensorflow:serving:model_warmup_latency", ("model_path", "status"))

    def page(self) -> str:
        return "\n".join(line for metric in vars(self).values() for line in metric.lines()) + "\n"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values)
    return ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True))
