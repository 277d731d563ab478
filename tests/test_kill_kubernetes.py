"""kill -9 under load: what reached the API server is on a tape that verifies afterwards, and so is what was answered.

A real gateway in a process of its own (with workers, in several), real kubectls and a plain client; the question is
what the stand-in was asked, what an exec wrote, what a server behind a port-forward read. As tests/test_kill_ssh.py,
which says what such a kill does not test.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kubernetes.loads import Load, Service, begin, ended, loads, service
from tests.kubernetes.place import KubePlace, kubectl, tales
from tests.peers.kubernetes import KubeServer, kube_server

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]
MODES: Final = [("durable", 1), ("durable", 2), ("written", 1)]


@pytest.fixture(scope="module")
def local_kube() -> Iterator[KubeServer]:
    """The stand-in with local processes: what an exec writes can be read here."""
    with kube_server(local=True) as server:
        yield server


def crash(place: KubePlace, mark: str, effects: Path, behind: Service, seconds: float) -> list[Load]:
    """Load a gateway and kill it; return its clients."""
    with place.serving() as gateway, kubectl(gateway, place.server) as run:
        every = loads(run, mark, effects, behind)
        begin(every)
        time.sleep(seconds)  # the moment of the kill is to be any
        os.killpg(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait(30)
        ended(every)
    return every


def killed_often(folder: Path, server: KubeServer, recording: str, workers: int, times: int) -> None:
    place = KubePlace(folder, server)
    place.configure(workers=workers, targets={"kube": {"recording": recording}})
    with tempfile.TemporaryDirectory(prefix="gc-") as effects, service() as behind:
        every: list[Load] = []
        for number in range(times):
            mark = f"{recording}{workers}r{number}"  # the server is shared: no name twice
            every += crash(place, mark, Path(effects), behind, 0.03 + 0.07 * (number % 7))
        with place.serving():  # recovers the last crash
            pass
        report = place.verified()
        told = tales(folder / "state" / "tapes")
        for one in every:
            one.check(told)
    tapes = report["tapes"]
    assert {tape["status"] for tape in tapes} <= {"verified", "incomplete"}
    broken = [tape for tape in tapes if tape["status"] == "incomplete"]
    # These lasted to the kill: the API session, two execs, two port-forwards.
    assert len(broken) >= 5 * times, [tape["status"] for tape in tapes]
    assert all("crash" in tape["fault"]["reason"] for tape in broken), broken
    assert not list((folder / "state" / "tapes").rglob("*.gct.*"))  # nothing was set aside


@pytest.mark.parametrize(("recording", "workers"), MODES)
def test_what_was_done_is_on_a_tape(tmp_path: Path, local_kube: KubeServer, recording: str, workers: int) -> None:
    killed_often(tmp_path, local_kube, recording, workers, 1)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("recording", "workers"), MODES)
def test_twenty_kills(tmp_path: Path, local_kube: KubeServer, recording: str, workers: int) -> None:
    killed_often(tmp_path, local_kube, recording, workers, 20)
