"""What is served: models, their versions on disk and in memory, labels; switching without dropping a request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_status_pb2, model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.development_server.errors import LOG, ServingError, StartError, invalid
from serving.development_server.metrics import Metrics
from serving.development_server.servable import Servable

MAX_VERSION = 2**63 - 1

State = get_model_status_pb2.ModelVersionStatus.State


@dataclass
class _Loaded:
    number: int
    servable: Servable
    requests: int = 0
    """Being answered now."""


class Model:
    """One model: a folder of numbered versions, and those of them that answer.

    Args:
        config: Name, folder and version policy; the newest version only when it has none.
        metrics: For the loader.
    """

    def __init__(self, config: model_server_config_pb2.ModelConfig, metrics: Metrics) -> None:
        self.config = config
        self._metrics = metrics
        self._changed = threading.Condition()
        self._serving: dict[int, _Loaded] = {}
        self._status: dict[int, get_model_status_pb2.ModelVersionStatus] = {}
        # Versions that did not load, and what their folder looked like: they get another chance when it changes.
        self._refused: dict[int, object] = {}
        self._missing: set[int] = set()
        self._folder_is_readable = True

    @contextmanager
    def servable(self, version: int | None) -> Iterator[tuple[int, Servable]]:
        """(version, servable) for one request; the newest one for None. It is not unloaded while it is held.

        Raises:
            ServingError: Not served.
        """
        with self._changed:
            number = max(self._serving, default=None) if version is None else version
            loaded = self._serving.get(number) if number is not None else None
            if loaded is None:
                raise _not_found(self.config.name, version)
            loaded.requests += 1
        try:
            yield loaded.number, loaded.servable
        finally:
            with self._changed:
                loaded.requests -= 1
                self._changed.notify_all()

    def is_available(self, version: int) -> bool:
        with self._changed:
            return version in self._serving

    def status(self, version: int | None) -> list[get_model_status_pb2.ModelVersionStatus]:
        """States of one version or of all, the newest first.

        Raises:
            ServingError: There are none.
        """
        with self._changed:
            known = dict(self._status)
        if version is not None and version not in known:
            raise ServingError(
                grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {self.config.name}"
            )
        if not known:
            raise _no_versions(self.config.name)
        return [known[number] for number in sorted(known, reverse=True) if version in (None, number)]

    def refresh(self) -> None:
        """Looks at the folder once: loads what the policy wants, then lets go of what it no longer wants."""
        folders = self._folders()
        if folders is None:
            return
        for number, before in list(self._refused.items()):
            if number not in folders or _fingerprint(folders[number]) != before:
                del self._refused[number]
        while True:
            wanted = self._wanted(folders.keys() - self._refused.keys())
            missing = wanted - self._serving.keys()
            if not missing:
                break
            self._load(max(missing), folders[max(missing)])
        # When nothing that is wanted can be loaded, the old version goes on, unless its owner emptied the folder.
        if wanted or not folders:
            for number in self._serving.keys() - wanted:
                self._unload(number)

    def close(self) -> None:
        for number in list(self._serving):
            self._unload(number)

    def _folders(self) -> dict[int, str] | None:
        """Version → folder; None when the folder cannot be listed, which may pass."""
        base = self.config.base_path
        try:
            names = [name.rstrip("/") for name in tf.io.gfile.listdir(base)]
        except tf.errors.OpError as error:
            if self._folder_is_readable:
                LOG.warning("%s: %s cannot be listed: %s", self.config.name, base, error.message)
            self._folder_is_readable = False
            return None
        self._folder_is_readable = True
        numbers = ((name, int(name)) for name in names if name.isascii() and name.isdigit())
        return {number: os.path.join(base, name) for name, number in numbers if number <= MAX_VERSION}

    def _wanted(self, versions: Collection[int]) -> set[int]:
        """The versions that the policy asks for, of those that are there."""
        policy = self.config.model_version_policy
        choice = policy.WhichOneof("policy_choice")
        if choice == "all":
            return set(versions)
        if choice == "specific":
            asked = set(policy.specific.versions)
            missing = asked - set(versions)
            for number in missing - self._missing:
                LOG.warning("%s: version %d is asked for, but not there", self.config.name, number)
            self._missing = missing
            return asked & set(versions)
        return set(sorted(versions, reverse=True)[: max(policy.latest.num_versions, 1)])

    def _load(self, number: int, path: str) -> None:
        self._set_state(number, State.LOADING)
        fingerprint = _fingerprint(path)
        started = time.perf_counter()
        try:
            servable = Servable(path, self._metrics)
        except ServingError as error:
            self._refused[number] = fingerprint
            self._set_state(number, State.END, error)
            still = ", ".join(str(n) for n in sorted(self._serving)) or "no version"
            LOG.error(
                "%s: version %d skipped: %s; %s goes on answering", self.config.name, number, error.message, still
            )
            return
        with self._changed:
            self._serving[number] = _Loaded(number, servable)
        self._set_state(number, State.AVAILABLE)
        LOG.info("%s: version %d answers, loaded in %.1f s", self.config.name, number, time.perf_counter() - started)

    def _unload(self, number: int) -> None:
        """Takes a version out of service, and closes it when its last request has been answered."""
        self._set_state(number, State.UNLOADING)
        with self._changed:
            loaded = self._serving.pop(number)
            self._changed.wait_for(lambda: loaded.requests == 0)
        loaded.servable.close()
        self._set_state(number, State.END)
        LOG.info("%s: version %d unloaded", self.config.name, number)

    def _set_state(self, number: int, state: int, error: ServingError | None = None) -> None:
        status = get_model_status_pb2.ModelVersionStatus(version=number, state=state)
        if error is not None:
            status.status.error_code = error.code.value[0]
            status.status.error_message = error.message
        else:
            status.status.SetInParent()
        with self._changed:
            self._status[number] = status


class Models:
    """All models of a server, by name, and the labels of their versions.

    None until `reconfigure`.

    Args:
        metrics: Counted by the loader.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._models: dict[str, Model] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._reconfiguring = threading.Lock()

    def reconfigure(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Takes over a configuration and loads what it asks for; models that it leaves out are unloaded.

        As with TF Serving's flag `--allow_version_labels_for_unavailable_models`, a new label may name a version that
        is not there yet; a label that is in use moves only to a version that answers.

        Raises:
            ServingError: It contradicts itself, or moves a label to a version that does not answer. Nothing changes.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        with self._reconfiguring:
            _check(config)
            configs = {model.name: model for model in config.model_config_list.config}
            labels = {name: self._checked_labels(model) for name, model in configs.items()}
            for name in self._models.keys() - configs.keys():
                self._models.pop(name).close()
            for name, model in configs.items():
                if name in self._models:
                    self._models[name].config = model
                else:
                    self._models[name] = Model(model, self._metrics)
                self._models[name].refresh()
            self._labels = labels

    def refresh(self) -> None:
        """Looks at every model's folder once."""
        with self._reconfiguring:
            for model in self._models.values():
                model.refresh()

    @contextmanager
    def servable(self, spec: model_pb2.ModelSpec) -> Iterator[tuple[int, Servable]]:
        """(version, servable) for a request.

        Raises:
            ServingError: Unknown model, version or label.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        version = spec.version.value if spec.HasField("version") else None
        if spec.version_label:
            version = self._labels.get(spec.name, {}).get(spec.version_label)
            if version is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        model = self._models.get(spec.name)
        if model is None:
            raise _not_found(spec.name, version)
        with model.servable(version) as served:
            yield served

    def names(self) -> list[str]:
        """The models that are served, in the order of the configuration."""
        return list(self._models)

    def label(self, name: str) -> str:
        """A model's name for the metrics; "" for those that are not served: strangers make as many as they like."""
        return name if name in self._models else ""

    def status(self, spec: model_pb2.ModelSpec) -> list[get_model_status_pb2.ModelVersionStatus]:
        """States of a model's versions, or of the one that the spec has.

        Raises:
            ServingError: Unknown model or version.
        """
        model = self._models.get(spec.name)
        if model is None:
            raise _no_versions(spec.name)
        return model.status(spec.version.value if spec.HasField("version") else None)

    def close(self) -> None:
        with self._reconfiguring:
            for model in self._models.values():
                model.close()

    def _checked_labels(self, config: model_server_config_pb2.ModelConfig) -> dict[str, int]:
        now = self._labels.get(config.name, {})
        for label, version in config.version_labels.items():
            moves = label in now and now[label] != version
            if moves and not self._models[config.name].is_available(version):
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {config.name}, which is not currently "
                    "available for inference",
                )
        return dict(config.version_labels)


def read_config(path: str) -> model_server_config_pb2.ModelServerConfig:
    """Reads a model config file.

    Raises:
        StartError: It cannot be read, is not a ModelServerConfig, or names no model or a folder that is not there.
    """
    try:
        with tf.io.gfile.GFile(path) as file:
            config = text_format.Parse(file.read(), model_server_config_pb2.ModelServerConfig())
        _check(config)
    except tf.errors.OpError as error:
        raise StartError(f"--model-config-file {path}: {error.message}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise StartError(f"--model-config-file {path}: not a ModelServerConfig: {error}") from None
    except ServingError as error:
        raise StartError(f"--model-config-file {path}: {error.message}") from None
    for model in config.model_config_list.config:
        check_folder(model.base_path, f"--model-config-file {path}: base_path")
    return config


def single_model(name: str, base_path: str) -> model_server_config_pb2.ModelServerConfig:
    """The configuration of one model, of which the newest version is served."""
    model = model_server_config_pb2.ModelConfig(name=name, base_path=base_path, model_platform="tensorflow")
    return model_server_config_pb2.ModelServerConfig(model_config_list={"config": [model]})


def check_folder(path: str, option: str) -> None:
    """Refuses a base path that does not exist.

    Raises:
        StartError: With the option that has it.
    """
    if not tf.io.gfile.isdir(path):
        raise StartError(f"{option} {path}: no such folder; push a model first with `twotower run`")


def _check(config: model_server_config_pb2.ModelServerConfig) -> None:
    models = config.model_config_list.config
    if not models:
        raise invalid("the configuration names no model")
    names = [model.name for model in models]
    for model in models:
        if names.count(model.name) > 1:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if not model.model_platform:
            raise invalid(
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )
        if not os.path.isabs(model.base_path) and "://" not in model.base_path:
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def _not_found(name: str, version: int | None) -> ServingError:
    request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServingError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")


def _no_versions(name: str) -> ServingError:
    return ServingError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")


def _fingerprint(folder: str) -> object:
    """Names, sizes and times of a version's files: what changes while somebody copies it or puts it right."""
    try:
        files = [os.path.join(parent, name) for parent, _, names in tf.io.gfile.walk(folder) for name in names]
        stats = [(file, tf.io.gfile.stat(file)) for file in sorted(files)]
    except tf.errors.OpError:
        return None
    return [(file, stat.length, stat.mtime_nsec) for file, stat in stats]
