"""What ``gatecast sessions show`` tells of real kubectls: how a watch ended, which files were copied, whose rows."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recorder.session_view import view
from tests.kubernetes.gateway import TARGET, KubeGateway, kube_gateway
from tests.kubernetes.running import Runner, Way
from tests.peers.kubernetes import KubeServer, wait_for

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def soon(kube: KubeServer) -> Iterator[KubeGateway]:
    """A gateway that seals the tape of requests a moment after the last of them."""
    quick = {TARGET: {"kubernetes": {"session_idle": "300ms"}}}
    with (
        tempfile.TemporaryDirectory(prefix="gatecast-") as folder,
        kube_gateway(Path(folder) / "gw", kube, targets=quick) as gateway,
    ):
        yield gateway


@pytest.fixture
def runner(kube: KubeServer, soon: KubeGateway) -> Iterator[Runner]:
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        made = Runner(Way("gateway", "1.37"), kube, soon, Path(folder))
        try:
            yield made
        finally:
            made.close()


def told(gateway: KubeGateway, verb: str, place: str) -> tuple[str, dict[str, Any]]:
    """The first command of that verb and object, with its session, once all tapes are sealed."""
    for path in gateway.tapes():
        tape = gateway.sealed(path)
        for command in view(tape, 1000)["commands"]:
            if command["verb"] == verb and command["objects"] == [place]:
                return tape.header.sid, command
    raise AssertionError(f"nowhere is {verb} {place}")


def gatecast(gateway: KubeGateway, *arguments: str) -> str:
    done = gateway.gatecast(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_watch_that_its_user_ends_has_an_end(runner: Runner, soon: KubeGateway, kube: KubeServer) -> None:
    mark = kube.mark()
    with runner.started(*runner.argv("get", "pods", "-w")) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"NAME")
        assert process.stdout.readline().startswith(b"web-0")
        # What is shown is the list; the watch comes behind it.
        wait_for(lambda: any("watch" in each["query"] for each in kube.requests(mark)), "the watch")
    _, found = told(soon, "watch", "default/pods/*")
    assert found["tag"] == "ended early"
    assert found["details"]["status"] == 200


def test_a_list_of_all_namespaces_says_whose_each_row_is(runner: Runner, soon: KubeGateway) -> None:
    runner.ok("get", "pods", "-A")
    session, _ = told(soon, "list", "*/pods/*")
    text = gatecast(soon, "export", session, "--format", "txt")
    assert "| Namespace | Name " in text
    assert "| prod      | db-0 " in text


def test_a_copy_says_its_files(runner: Runner, soon: KubeGateway) -> None:
    (runner.folder / "up.txt").write_bytes(b"copied\n")
    place = runner.scratch()
    runner.sh(f"mkdir -p {place}")
    runner.ok("cp", "up.txt", f"web-0:{place}/up.txt", "-c", "main")
    session, _ = told(soon, "copy-in", "default/pods/web-0")
    text = gatecast(soon, "sessions", "show", session)
    assert f"put up.txt, 7 B, sha256 {hashlib.sha256(b'copied' + bytes([10])).hexdigest()}" in text
