"""The Pusher on real folders: gates, version numbers, and what a kill in the middle of the copy leaves behind."""

import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
import uuid

import pytest
from tfx import types
from tfx.components.evaluator import constants
from tfx.dsl.io import fileio, filesystem_registry
from tfx.dsl.io.plugins import tensorflow_gfile
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts, standard_component_specs
from tfx.utils import json_utils, proto_utils

from components.pusher import executor
from components.pusher.component import Pusher
from modules import push_destination
from modules.errors import UserError
from modules.push_destination import latest_version, read_stamp, versions

FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "assets/items": b"a\nb\n",
    "assets.extra/tf_serving_warmup_requests": b"warmup",
}


@pytest.fixture
def servable(tmp_path):
    artifact = standard_artifacts.Model()
    artifact.uri = str(tmp_path / "servable")
    for name, content in FILES.items():
        path = tmp_path / "servable" / "Format-Serving" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return artifact


@pytest.fixture
def destination(tmp_path):
    return tmp_path / "served" / "model"


@pytest.fixture
def push(tmp_path, servable, destination):
    """Runs the executor; returns the PushedModel artifact."""

    def run(model_blessed=True, infra_blessed=True, to=destination, stamp="fingerprint"):
        model_blessing = standard_artifacts.ModelBlessing()
        model_blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(model_blessed))
        infra_blessing = standard_artifacts.InfraBlessing()
        infra_blessing.set_int_custom_property("blessed", int(infra_blessed))
        pushed = standard_artifacts.PushedModel()
        pushed.uri = str(tmp_path / "pushed_model")
        target = pusher_pb2.PushDestination(filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(to)))
        executor.Executor().Do(
            {
                standard_component_specs.MODEL_KEY: [servable],
                standard_component_specs.MODEL_BLESSING_KEY: [model_blessing],
                standard_component_specs.INFRA_BLESSING_KEY: [infra_blessing],
            },
            {standard_component_specs.PUSHED_MODEL_KEY: [pushed]},
            {
                standard_component_specs.PUSH_DESTINATION_KEY: proto_utils.proto_to_json(target),
                standard_component_specs.CUSTOM_CONFIG_KEY: json_utils.dumps({executor.PIPELINE_STAMP_KEY: stamp}),
            },
        )
        return pushed

    return run


def content(folder):
    """Every file's bytes, but for the manifest of the others."""
    return {
        os.path.relpath(os.path.join(where, name), folder): open(os.path.join(where, name), "rb").read()
        for where, _, names in os.walk(folder)
        for name in names
        if name != "manifest.json"
    }


def test_a_blessed_model_is_pushed_whole_and_stamped(push, destination):
    before = int(time.time())
    pushed = push()

    [version] = os.listdir(destination)
    assert before <= int(version) <= time.time()
    assert content(destination / version) == {**FILES, "assets.extra/pipeline_stamp": b"fingerprint"}
    assert read_stamp(str(destination / version)) == "fingerprint"
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_destination") == str(destination / version)
    assert pushed.get_string_custom_property("pushed_version") == version
    assert content(pushed.uri) == FILES


@pytest.mark.parametrize(("model_blessed", "infra_blessed"), [(False, True), (True, False), (False, False)])
def test_a_model_that_fails_a_gate_leaves_the_destination_alone(push, destination, model_blessed, infra_blessed):
    push()
    before = content(destination)
    pushed = push(model_blessed=model_blessed, infra_blessed=infra_blessed)
    assert content(destination) == before
    assert pushed.get_int_custom_property("pushed") == 0


def test_versions_always_rise(push, destination):
    """Within a second, and after a clock that ran ahead."""
    first, second = (push().get_string_custom_property("pushed_version") for _ in range(2))
    assert int(second) > int(first)
    (destination / "99999999999").mkdir()
    assert push().get_string_custom_property("pushed_version") == "100000000000"


def stall_in_the_last_copy(push, reached):
    """As a process of its own: the copy of saved_model.pb into the destination never ends."""
    copy = fileio.copy

    def stalled(source, target, overwrite=False):
        if target.endswith("saved_model.pb"):
            reached.set()
            time.sleep(600)
        copy(source, target, overwrite)

    fileio.copy = stalled
    push()


def test_a_push_that_is_killed_shows_tf_serving_nothing_and_the_next_one_cleans_up(push, destination):
    old = push(stamp="old").get_string_custom_property("pushed_version")
    # Forked, because a fresh process would import TFX for ten seconds.
    context = multiprocessing.get_context("fork")
    reached = context.Event()
    process = context.Process(target=stall_in_the_last_copy, args=(push, reached))
    process.start()
    assert reached.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    assert versions(str(destination)) == [int(old)]
    assert latest_version(str(destination)) == old
    assert content(destination / old) == {**FILES, "assets.extra/pipeline_stamp": b"old"}
    [leftover] = set(os.listdir(destination)) - {old}
    assert not leftover.isdigit()
    assert content(destination / leftover), "killed before anything was copied"

    new = push().get_string_custom_property("pushed_version")
    assert set(os.listdir(destination)) == {old, new}


def test_a_push_that_still_runs_is_left_alone(push, destination):
    def leave(host, process, seconds):
        folder = destination / f".staging-{host}-{process}-{int(seconds)}-0123abcd"
        folder.mkdir(parents=True)
        return folder.name

    living = leave(socket.gethostname(), os.getppid(), time.time())
    elsewhere = leave("other-host", 1, time.time())
    leave("other-host", 1, time.time() - 2 * 24 * 3600)
    leave(socket.gethostname(), 2**22 + 1, time.time())  # above every process number
    foreign = "notes"
    (destination / foreign).mkdir()

    version = push().get_string_custom_property("pushed_version")
    assert set(os.listdir(destination)) == {living, elsewhere, foreign, version}


def test_a_failed_copy_leaves_nothing(push, servable, destination):
    os.symlink("/nowhere", os.path.join(servable.uri, "Format-Serving", "assets", "torn"))
    with pytest.raises(fileio.NotFoundError):
        push()
    assert os.listdir(destination) == []


def test_a_destination_that_refuses_writes_is_the_users_mistake(push, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError) as error:
        push(to=tmp_path / "file" / "model")
    message = str(error.value)
    assert message.startswith(f"push destination {tmp_path}/file/model: ")
    assert "Not a directory" in message and "output.push" in message and "\n" not in message


def test_a_remote_destination_gets_its_saved_model_last(push, servable):
    """TensorFlow's file system in memory stands for an object store: neither can rename a folder."""

    class Remote(tensorflow_gfile.TensorflowFilesystem):
        SUPPORTED_SCHEMES = ["ram://"]
        copied = []

        @staticmethod
        def copy(source, target, overwrite=False):
            Remote.copied.append(target)
            tensorflow_gfile.TensorflowFilesystem.copy(source, target, overwrite)

    # That file system confuses folders of which one's name begins with the other's.
    shutil.rmtree(os.path.join(servable.uri, "Format-Serving", "assets"))
    filesystem_registry.DEFAULT_FILESYSTEM_REGISTRY.register(Remote, priority=0, use_as_fallback=False)
    base = f"ram://{uuid.uuid4().hex}/model"
    first, second = (push(to=base).get_string_custom_property("pushed_version") for _ in range(2))
    assert versions(base) == [int(first), int(second)]
    assert sorted(fileio.listdir(base)) == [first, second]
    pushed = {**FILES, "assets.extra/pipeline_stamp": b"fingerprint"}
    del pushed["assets/items"]
    for name, wanted in pushed.items():
        with fileio.open(os.path.join(base, second, name), "rb") as file:
            assert file.read() == wanted
    into_second = [path for path in Remote.copied if path.startswith(os.path.join(base, second))]
    assert len(into_second) == len(pushed)
    assert into_second[-1].endswith("saved_model.pb")


def test_the_component_hands_the_stamp_to_its_executor(servable):
    pusher = Pusher(
        model=types.Channel(type=standard_artifacts.Model),
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory="served/model")
        ),
        pipeline_stamp="fingerprint",
    )
    assert json_utils.loads(pusher.exec_properties["custom_config"]) == {"pipeline_stamp": "fingerprint"}
    assert pusher.executor_spec.executor_class is executor.Executor


def test_a_push_waits_for_an_update_that_is_under_way(push, destination):
    first = push().get_string_custom_property("pushed_version")
    with push_destination.exclusive(str(destination)):
        thread = threading.Thread(target=push)
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and versions(str(destination)) == [int(first)]
    thread.join(60)
    assert len(versions(str(destination))) == 2
