"""A full disk in the middle of requests and streams: a Status says why, and nothing was done unrecorded.

A real gateway in a process of its own, real kubectls; the tapes are on a file system of some MiB, as in
tests/test_disk_full_ssh.py: tmpfs, which has no room the moment it is full, and ext4, which promises room first and
allocates it later. With room made, the same gateway serves again. Needs root, to mount.
"""

from __future__ import annotations

import http.client
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.kubernetes.gateway import KubeGateway
from tests.kubernetes.loads import Creates, Execs, Forwards, Kubectls, Load, begin, ended, loads, service
from tests.kubernetes.place import Answer, Api, KubePlace, kubectl, tales
from tests.kubernetes.running import SPDY, Runner
from tests.peers.kubernetes import KubeServer, kube_server
from tests.peers.ssh import children
from tests.ssh.running import until
from tests.test_disk_full_psql import MIB, SmallDisk, all_sealed, events, small_disk

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]
LOST: Final = b"the session can no longer be recorded, so it ends"
NOT_SERVED: Final = "cannot be recorded, so it is not served"
# The upkeep's second, its retry after five, a sync, and a busy machine; as in test_disk_full_psql.py.
BACK_SECONDS: Final = 30.0
SLOW: Final = "while head -c 20000 /dev/urandom; do sleep 0.1; done"
ENDLESS: Final = "cat /dev/urandom"


@pytest.fixture(scope="module")
def local_kube() -> Iterator[KubeServer]:
    with kube_server(local=True) as server:
        yield server


def place_on(
    disk: SmallDisk, folder: Path, server: KubeServer, recording: str, *, workers: int = 1, reserve: object = 0
) -> KubePlace:
    place = KubePlace(folder, server)
    place.configure(
        workers=workers,
        targets={"kube": {"recording": recording}},
        recorder={"reserve": reserve, "directory": str(disk.path / "tapes")},
    )
    return place


def works(run: Runner) -> bool:
    done = run.do("get", "pods", "-o", "name")
    return done.returncode == 0 and b"pod/web-0\n" in done.stdout


class Bulk:
    """A kubectl exec without an end. Its output waits in the pipe until end(), or the disk would be full too soon."""

    def __init__(self, run: Runner, script: str, *options: str) -> None:
        argv = run.argv("exec", *options, "web-0", "-c", "main", "--", "sh", "-c", script)
        self._process = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=run.environment,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert len(self._process.stdout.read(1000)) == 1000

    def end(self) -> bytes:
        """Read until it ends; returns its errors."""
        out, err = self._process.communicate(timeout=60)
        assert self._process.returncode == 1, (self._process.returncode, out[-100:], err)
        return err


def refused(disk: SmallDisk, ask: Callable[[], Answer]) -> Answer:
    """Ask until it is not served: what broke gives room back when it is sealed."""

    def attempt() -> Answer | None:
        disk.fill()
        try:
            answer = ask()
        except (http.client.HTTPException, OSError):  # an answer that was broken off
            return None
        return answer if answer.status >= 500 else None

    found = until(attempt, "refusal")
    assert isinstance(found, Answer)
    return found


@pytest.mark.parametrize(
    ("kind", "recording", "workers"),
    [("tmpfs", "durable", 1), ("ext4", "durable", 2), pytest.param("ext4", "written", 1, marks=pytest.mark.nightly)],
)
def test_streams_end_requests_are_refused_and_with_room_it_serves_again(
    tmp_path: Path, local_kube: KubeServer, kind: str, recording: str, workers: int
) -> None:
    with small_disk(kind, tmp_path) as disk, tempfile.TemporaryDirectory(prefix="gc-") as effects, service() as behind:
        place = place_on(disk, tmp_path, local_kube, recording, workers=workers)
        with place.serving() as gateway, kubectl(gateway, local_kube) as run:
            assert works(run)
            every = loads(run, f"{kind}{recording}", Path(effects), behind)
            begin(every)
            bulk = [Bulk(run, ENDLESS), Bulk(run, f"head -c 1000 /dev/zero; ({SLOW}) >&2")]
            with kubectl(gateway, local_kube, switches=SPDY) as by_spdy:
                bulk.append(Bulk(by_spdy, ENDLESS))
            disk.fill()
            for reader in bulk:
                assert LOST in reader.end()
            ended(every)
            for one in every:
                match one:
                    case Execs():
                        assert LOST in one.failure, (one.label, one.failure)
                    case Kubectls():
                        # It may have met the end of the session in the middle of an answer.
                        assert b"recorded" in one.failure or b"EOF" in one.failure, (one.label, one.failure)
                    case Creates():
                        # The Status, or the end of the connection: what it was told in full is on the tape anyway.
                        assert b"recorded" in one.failure or b"closed" in one.failure, (one.label, one.failure)
                    case _:
                        pass  # kubectl says that the connection to the pod is lost, and no more
            api = Api(gateway)
            before = local_kube.mark()
            answer = refused(disk, lambda: api.create("unrecorded"))
            assert (answer.status, answer.json["reason"]) == (503, "ServiceUnavailable")
            assert NOT_SERVED in answer.message
            assert NOT_SERVED in refused(disk, lambda: api.get("/api/v1/pods")).message
            done = until(lambda: failing(disk, run), "refusal")
            assert b"recorded" in done.stderr, done.stderr
            api.close()
            check_all(every, disk)
            reached = [each for each in local_kube.requests(before) if "unrecorded" in each["body"]]
            taped = [
                each for each in tales(disk.path) for flow in each.allowed
                if b'"unrecorded"' in each.bytes_of(flow, "user")
            ]  # fmt: skip
            assert len(reached) <= len(taped)
            assert not [tape for tape in place.verified()["tapes"] if tape["status"] in ("altered", "unknown")]

            disk.free()
            until(lambda: works(run), "request that works", BACK_SECONDS)
            assert run.sh("echo it works").stdout == b"it works\n"
            # All but the session of the requests, one a worker.
            until(lambda: all_sealed(disk.path, workers), "seal of what broke", BACK_SECONDS)
        check_all(every, disk)
        after = place.verified()
        assert {tape["status"] for tape in after["tapes"]} <= {"verified", "incomplete"}
        assert not list(disk.path.rglob("*.wal"))


def failing(disk: SmallDisk, run: Runner) -> subprocess.CompletedProcess[bytes] | None:
    """An exec that is not opened; None if it was."""
    disk.fill()
    done = run.do("exec", "web-0", "-c", "main", "--", "echo", "unrecorded")
    return done if done.returncode != 0 else None


def check_all(every: list[Load], disk: SmallDisk) -> None:
    told = tales(disk.path)
    for one in every:
        one.check(told)


@pytest.mark.parametrize("kind", ["tmpfs", pytest.param("ext4", marks=pytest.mark.nightly)])
def test_below_the_reserve_no_session_begins_and_those_that_run_go_on(
    tmp_path: Path, local_kube: KubeServer, kind: str
) -> None:
    with small_disk(kind, tmp_path) as disk, tempfile.TemporaryDirectory(prefix="gc-") as effects, service() as behind:
        place = place_on(disk, tmp_path, local_kube, "durable", reserve="4MiB")
        with place.serving() as gateway, kubectl(gateway, local_kube) as run:
            every: list[Load] = [
                Creates(f"r{kind}a", Api(gateway), local_kube),
                Execs(f"r{kind}e", run, Path(effects)),
                Forwards(f"r{kind}p", run, behind),
            ]
            begin(every)
            disk.fill(leave_bytes=3 * MIB)
            opened = run.sh("echo unrecorded")
            assert (opened.returncode, opened.stdout) == (1, b"")
            assert b"recorded" in opened.stderr, opened.stderr
            other = Api(gateway, token=place.issue("bob@example.com")[0])
            answer = other.get("/api/v1/pods")
            assert (answer.status, answer.json["code"]) == (503, 503)
            assert NOT_SERVED in answer.message
            other.close()
            before = [one.done for one in every]
            until(lambda: all(one.done > seen + 5 for one, seen in zip(every, before, strict=True)), "progress")
            disk.free()
            assert run.sh("echo it works").stdout == b"it works\n"
            for one in every:
                one.finish()
        check_all(every, disk)
        assert {tape["status"] for tape in place.verified()["tapes"]} == {"verified"}


def test_many_failed_sessions_leave_nothing_behind(tmp_path: Path, local_kube: KubeServer) -> None:
    with small_disk("tmpfs", tmp_path) as disk:
        place = place_on(disk, tmp_path, local_kube, "durable")
        with place.serving() as gateway, kubectl(gateway, local_kube) as run:
            assert works(run)
            fail(run, disk, 5)
            until(lambda: works(run) and all_sealed(disk.path, 1), "recovery", BACK_SECONDS)
            before, size = rest(gateway), gateway.resident_bytes
            fail(run, disk, 15)
            until(lambda: works(run) and all_sealed(disk.path, 1), "recovery", BACK_SECONDS)
            # Five execs at once ask for their pod: so many connections to the target may be kept for the next ones.
            until(lambda: rest(gateway) <= before + 5, "descriptors let go of", BACK_SECONDS)
            assert gateway.resident_bytes < size + 20 * MIB
            assert not list(disk.path.rglob("*.orphan"))
            assert len(place.verified()["tapes"]) >= 20
        told_of = [event["event"] for event in events(tmp_path)]
        assert told_of.count("recorder-upkeep-failed") < 30
        assert told_of.count("recording failed, the session ends") >= 15


def fail(run: Runner, disk: SmallDisk, sessions: int) -> None:
    """End so many execs by a full disk, five at a time."""
    for _ in range(sessions // 5):
        with ThreadPoolExecutor(5) as pool:
            until(lambda: works(run), "request that works", BACK_SECONDS)
            several = list(pool.map(lambda _: Bulk(run, SLOW), range(5)))
            disk.fill()
            assert all(LOST in said for said in pool.map(Bulk.end, several))
        disk.free()


def rest(gateway: KubeGateway) -> int:
    """How many descriptors the gateway has open, once no stream is."""
    until(lambda: len(gateway.json("sessions", "live")) <= 1, "end of the streams")
    return sum(
        len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (gateway.process.pid, *children(gateway.process.pid))
    )
