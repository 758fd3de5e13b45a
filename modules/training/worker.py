"""One worker of a fit that several machines share: `python -m modules.training.worker` (docs/scale.md).

The chief's is started by the Trainer, which gives it the job and shows what it says; the others are started by hand and
hear of the job from the chief. A process of its own, because TensorFlow connects workers only before it has computed
anything. Workers see the same files under the same paths.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import threading

# Before TensorFlow is imported: Keras 2, and the same sums everywhere.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

from modules.errors import UserError
from modules.training.cluster import Cluster
from modules.training.distribution import Distribution
from modules.training.job import Job

_PROGRESS = logging.getLogger("twotower.progress")
_ERROR = "error: "
_DAY = 86_400


def run_apart(job: Job) -> None:
    """Runs the job in a worker that is a process of its own, with this process's TF_CONFIG.

    Raises:
        UserError: TF_CONFIG is wrong, a worker could not be reached, or the job raised it.
        RuntimeError: The worker ended before the job was done.
    """
    Cluster.of_environment()
    process = subprocess.Popen(
        [sys.executable, "-m", "modules.training.worker", "--wait", str(job.training.worker_wait)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    error = ""
    try:
        # It may have ended already, and says why below.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
        for line in process.stdout:
            if line.startswith(_ERROR):
                error = line.removeprefix(_ERROR).strip()
            else:
                _PROGRESS.info("%s", line.rstrip())
        code = process.wait()
    finally:
        process.kill()
    if code == 2 and error:
        raise UserError(error)
    if code:
        raise RuntimeError(f"training.distribution: multi_worker: {error or f'the worker here ended with {code}'}")


def main() -> int:
    """Takes part in one fit.

    Returns:
        Exit code: 0, 1 when another worker was lost, 2 for a mistake, in one line.
    """
    parser = argparse.ArgumentParser("python -m modules.training.worker", description=__doc__)
    parser.add_argument("--wait", type=float, default=_DAY, metavar="SECONDS", help="for the others (default: a day)")
    wait = parser.parse_args().wait
    _PROGRESS.setLevel(logging.INFO)
    _PROGRESS.propagate = False
    _PROGRESS.addHandler(logging.StreamHandler(sys.stdout))
    try:
        cluster = Cluster.of_environment()
        text = _job_of_the_trainer() if cluster.is_chief else ""
        _PROGRESS.info("worker %s waits for %d others", cluster.address, len(cluster.addresses) - 1)
        cluster.wait_for_others(wait)
        _take_part(cluster, text)
    except UserError as error:
        print(f"{_ERROR}{error}", flush=True)
        return 2
    except tf.errors.OpError:
        lost = cluster.missing()
        if not lost:
            raise
        print(f"{_ERROR}worker {lost[0]} was lost; the next run goes on from the last epoch", flush=True)
        return 1
    return 0


def _job_of_the_trainer() -> str:
    """The job, a line of standard input; the process ends when whoever wrote it does."""
    text = "" if sys.stdin.isatty() else sys.stdin.readline()
    if not text:
        raise UserError("the chief's worker is started by the Trainer of `twotower run`; start the others like this")

    def end_with_the_trainer() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_the_trainer, daemon=True).start()
    return text


def _take_part(cluster: Cluster, text: str) -> None:
    distribution = Distribution.of_cluster(cluster)
    job = Job.from_json(distribution.text_from_chief(text))
    distribution.check_batch(job.training)
    job.run(distribution)
    # Whoever leaves is lost to the others: nobody does before the chief has written the model.
    distribution.from_chief(0)


if __name__ == "__main__":
    sys.exit(main())
