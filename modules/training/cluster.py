"""The workers that TensorFlow's TF_CONFIG names, and whether they are there.

    {"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}

Imports nothing heavy: a mistake is said before TensorFlow is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from modules.errors import UserError

VARIABLE = "TF_CONFIG"
_KEY = "training.distribution: multi_worker"
_EXAMPLE = '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}'
_JOBS = ("chief", "worker")
# The host of an IPv6 address has colons and stands in brackets.
_ADDRESS = re.compile(r"(?P<host>[^\s:/\[\]]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")
_CONNECT_SECONDS, _LOOK_AGAIN_SECONDS = 5.0, 0.2


class Address(NamedTuple):
    """Where a worker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def check_chief(batch_size: int) -> None:
    """What can be said before a run: that TF_CONFIG is right, and this its chief.

    Args:
        batch_size: `training.batch_size`.

    Raises:
        UserError: Something is wrong with TF_CONFIG, or there are more workers than rows in a batch.
    """
    cluster = Cluster.of_environment()
    if not cluster.is_chief:
        raise UserError(
            f"{_KEY}: {VARIABLE} makes this worker {cluster.address}; a run is the chief's, {cluster.addresses[0]}; "
            "start this one with `python -m modules.training.worker`"
        )
    if batch_size < len(cluster.addresses):
        raise UserError(
            f"training.batch_size: {batch_size} rows cannot be shared by the {len(cluster.addresses)} workers of "
            f"{VARIABLE}; give {len(cluster.addresses)} or more"
        )


@dataclass(frozen=True)
class Cluster:
    """The workers of a fit, the chief first, and which of them this process is."""

    addresses: tuple[Address, ...]
    number: int
    """Of this process, from 0."""

    @property
    def is_chief(self) -> bool:
        return self.number == 0

    @property
    def address(self) -> Address:
        """This process's own."""
        return self.addresses[self.number]

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Cluster:
        """What TF_CONFIG says.

        Raises:
            UserError: It is missing or says something else than two or more workers, of which this is one.
        """
        content = environment.get(VARIABLE)
        if not content:
            raise UserError(f"{_KEY} needs {VARIABLE}, which is not set; for instance {_EXAMPLE}")
        try:
            tree = json.loads(content)
        except ValueError as error:
            raise UserError(f"{_KEY}: {VARIABLE} is not JSON ({error}); for instance {_EXAMPLE}") from None
        cluster, task = _part(tree, "cluster"), _part(tree, "task")
        other = sorted(set(cluster) - set(_JOBS))
        if other:
            raise UserError(f"{_KEY}: {VARIABLE} has the job {other[0]!r}; there are only {' and '.join(_JOBS)}")
        jobs = {job: _addresses(job, cluster[job]) for job in _JOBS if cluster.get(job)}
        if len(jobs.get("chief", ())) > 1:
            raise UserError(f"{_KEY}: {VARIABLE} has {len(jobs['chief'])} chiefs; leave one")
        addresses = [address for job in _JOBS for address in jobs.get(job, ())]
        twice = next((str(address) for address in addresses if addresses.count(address) > 1), None)
        if twice is not None:
            raise UserError(f"{_KEY}: {VARIABLE} has the worker {twice} twice; remove one")
        if len(addresses) < 2:
            raise UserError(f"{_KEY}: {VARIABLE} names fewer than two workers; add one, or choose none or mirrored")
        job, index = task.get("type"), task.get("index")
        if not isinstance(job, str) or job not in jobs or type(index) is not int or index < 0:
            raise UserError(f"{_KEY}: the task of {VARIABLE} is none of its cluster's: type {job!r}, index {index!r}")
        if index >= len(jobs[job]):
            raise UserError(
                f"{_KEY}: the task of {VARIABLE} is {job} {index}, but its cluster has {len(jobs[job])} of them, "
                "counted from 0"
            )
        before = len(jobs.get("chief", ())) if job == "worker" else 0
        return cls(tuple(addresses), before + index)

    def wait_for_others(self, seconds: float) -> None:
        """Listens at its own address until every other worker listens at its own.

        TensorFlow itself would wait for an hour, and then not say for whom.

        Args:
            seconds: How long, at most.

        Raises:
            UserError: Somebody is not there in time, or this address is taken.
        """
        deadline = time.monotonic() + seconds
        with self._listening():
            while missing := self.missing():
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"{_KEY}: worker {missing[0]} could not be reached within {seconds:g} s; start it, or mend "
                        f"{VARIABLE}"
                    )
                time.sleep(_LOOK_AGAIN_SECONDS)

    def missing(self) -> list[Address]:
        """Where none of the other workers listens."""
        return [address for address in self.addresses if address != self.address and not _answers(address)]

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        try:
            server = socket.create_server(
                ("", self.address.port), family=family, dualstack_ipv6=family == socket.AF_INET6
            )
        except OSError as error:
            raise UserError(f"{_KEY}: cannot listen at {self.address}: {error.strerror or error}") from None
        with server:
            yield


def _part(tree: Any, name: str) -> dict[str, Any]:
    part = tree.get(name) if isinstance(tree, dict) else None
    if not isinstance(part, dict):
        raise UserError(f"{_KEY}: {VARIABLE} has no {name!r}; for instance {_EXAMPLE}")
    return part


def _addresses(job: str, values: Any) -> list[Address]:
    if not isinstance(values, list):
        raise UserError(f"{_KEY}: {job} of {VARIABLE} must be a list of host:port")
    found = []
    for value in values:
        match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
        if match is None or not 0 < int(match["port"]) < 2**16:
            raise UserError(f"{_KEY}: {job} {value!r} of {VARIABLE} is no host:port")
        found.append(Address(match["host"], int(match["port"])))
    return found


def _answers(address: Address) -> bool:
    try:
        with socket.create_connection((address.host.strip("[]"), address.port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False
