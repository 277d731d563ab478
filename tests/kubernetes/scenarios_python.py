"""Scenarios of the Python client (kubernetes): its list, watch and stream, as a program would use them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config, watch  # type: ignore[import-untyped]
from kubernetes.stream import portforward, stream  # type: ignore[import-untyped]

from tests.kubernetes.running import Runner, scenario
from tests.peers.ssh import free_port


@contextlib.contextmanager
def _api(run: Runner) -> Iterator[Any]:
    with config.new_client_from_config(str(run.kubeconfig)) as made:
        yield client.CoreV1Api(made)


@scenario()
def lists(run: Runner) -> None:
    with _api(run) as api:
        assert {each.metadata.name for each in api.list_namespaced_pod("default").items} >= {"web-0", "web-1"}
        assert [each.metadata.name for each in api.list_pod_for_all_namespaces(label_selector="app=db").items] == [
            "db-0"
        ]
        try:
            api.read_namespaced_pod("nobody", "default")
        except client.ApiException as error:
            assert (error.status, json.loads(error.body)["reason"]) == (404, "NotFound")
        else:
            raise AssertionError("there is no such pod")


@scenario()
def writes(run: Runner) -> None:
    name = run.name("python")
    with _api(run) as api:
        made = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"a": "ü"})
        assert api.create_namespaced_config_map("default", made).data == {"a": "ü"}
        assert api.patch_namespaced_config_map(name, "default", {"data": {"b": "2"}}).data == {"a": "ü", "b": "2"}
        assert api.delete_namespaced_config_map(name, "default").status == "Success"


@scenario()
def watches(run: Runner) -> None:
    """A watch that sees what is made after it began, and ends by its own time."""
    name = run.name("pythonwatched")
    with _api(run) as api:
        version = api.list_namespaced_config_map("default").metadata.resource_version

        def make() -> None:
            time.sleep(0.3)
            run.ok("create", "configmap", name)
            run.ok("delete", "configmap", name)

        thread = threading.Thread(target=make)
        thread.start()
        seen = [
            event["type"]
            for event in watch.Watch().stream(
                api.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=3
            )
            if event["object"].metadata.name == name
        ]
        thread.join()
        assert seen == ["ADDED", "DELETED"]


@scenario()
def logs(run: Runner) -> None:
    with _api(run) as api:
        assert "line " in api.read_namespaced_pod_log("web-0", "default", container="main", tail_lines=5)


def _exec(api: Any, *command: str, **options: Any) -> Any:
    wanted = {"stdin": False, "stdout": True, "stderr": True, "tty": False, **options}
    return stream(
        api.connect_get_namespaced_pod_exec, "web-0", "default", container="main", command=list(command), **wanted
    )


@scenario()
def execs(run: Runner) -> None:
    """Whole, and piece by piece with stdin; the client speaks WebSocket v4."""
    with _api(run) as api:
        assert _exec(api, "echo", "hello") == "hello\n"
    with _api(run) as api:
        session = _exec(
            api, "sh", "-c", "read -r x; echo got $x; echo no >&2; exit 5", stdin=True, _preload_content=False
        )
        session.write_stdin("word\n")
        session.run_forever(timeout=20)
        assert session.read_stdout() == "got word\n"
        assert session.read_stderr() == "no\n"
        assert session.returncode == 5
        session.close()


@scenario()
def an_exec_that_ends_at_once(run: Runner) -> None:
    """The client polls the socket, not TLS: of two frames in one TLS record it sees the second with the next record.

    API servers write each frame by itself. With Status and Close in one record it waits until the connection is cut.
    """
    with _api(run) as api:
        begun = time.monotonic()
        assert _exec(api, "echo", "hello") == "hello\n"
        assert time.monotonic() - begun < 4.0


@scenario()
def forwards_the_old_way(run: Runner) -> None:
    """The client's port-forward is kubelets' old form over WebSocket, which is refused, and nothing hangs."""
    with _api(run) as api, pytest.raises((client.ApiException, AttributeError)):  # it stumbles over its own error
        portforward(api.connect_get_namespaced_pod_portforward, "web-0", "default", ports=str(free_port()))
