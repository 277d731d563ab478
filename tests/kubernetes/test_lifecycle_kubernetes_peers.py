"""The life of a Kubernetes gateway: stop, reload, revocation, kills, limits, workers, shared sessions, what is left.

Whatever ends a stream says why in its Status, which kubectl prints; requests get a Status in an answer, and tapes are
sealed. tests/ssh/test_lifecycle_peers.py has the same for SSH, tests/test_app.py without a protocol.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from recorder.cipher import AuditorKey
from recorder.reader import TapeReader
from tests.kubernetes.gateway import ALLOW_ALL, TARGET, KubeGateway
from tests.kubernetes.loads import service
from tests.kubernetes.place import CONFIGMAPS, Api, KubePlace, Tale, kubectl, tale, tales
from tests.kubernetes.running import SPDY, Runner, connected
from tests.peers.kubernetes import TOKEN, KubeServer, kube_server
from tests.peers.ssh import children
from tests.ssh.running import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]
MIB: Final = 1 << 20
REVOKED: Final = b"the login was revoked or has expired"
MASK: Final = """\
  - {name: values, mask: [{fields: ["secrets:data.*"], action: redact}]}
"""
NO_WRITES: Final = (
    ALLOW_ALL
    + """\
  - {name: look-only, commands: {verbs: [create]}, deny: {reason: nothing is made here}}
"""
)


@pytest.fixture(scope="module")
def local_kube() -> Iterator[KubeServer]:
    """The stand-in with local processes: nothing here is about containers."""
    with kube_server(local=True) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, local_kube: KubeServer) -> Iterator[KubePlace]:
    """A place whose tapes must verify in the end."""
    found = KubePlace(tmp_path, local_kube)
    yield found
    verified = found.gatecast("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@contextmanager
def waiting(run: Runner) -> Iterator[subprocess.Popen[bytes]]:
    """A kubectl exec whose command waits for its input; it has begun."""
    argv = run.argv("exec", "-i", "web-0", "-c", "main", "--", "sh", "-c", "echo begun; cat")
    with run.started(*argv) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield process


def cut_off(process: subprocess.Popen[bytes], seconds: float = 30) -> bytes:
    """Wait until kubectl ends with an error; returns what it said."""
    assert process.wait(seconds) == 1
    assert process.stderr is not None
    return process.stderr.read()


class Watching:
    """A watch of ConfigMaps over a connection of its own; it has begun."""

    def __init__(self, gateway: KubeGateway, server: KubeServer, token: str, target: str) -> None:
        self.api = Api(gateway, token=token, target=target)
        self.api.send("GET", f"{CONFIGMAPS}?watch=true&resourceVersion=0")
        self.answer = self.api.connection.getresponse()
        assert self.answer.status == 200
        self._direct = _Direct(server)
        self._count = 0

    def event(self) -> None:
        """Something changes, and is seen."""
        name = f"w{id(self):x}-{self._count}"
        self._count += 1
        self._direct.create(name)
        while (line := self.answer.readline()) and json.loads(line)["object"]["metadata"]["name"] != name:
            pass
        assert line, "the watch has ended"

    def cut(self) -> bool:
        """Read to the end; whether it was cut off, so that nobody takes it for whole."""
        try:
            while self.answer.read1():
                pass
        except http.client.IncompleteRead:
            return True
        return False

    def close(self) -> None:
        """Leave."""
        self.api.close()
        self._direct.close()


class _Direct(Api):
    """The API server itself."""

    def __init__(self, server: KubeServer) -> None:
        context = ssl.create_default_context(cafile=str(server.authority.ca_file))
        self.connection = http.client.HTTPSConnection(server.host, server.port, context=context, timeout=60)
        self._path = ""
        self._headers = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def watching(gateway: KubeGateway, server: KubeServer, *, token: str = "", target: str = TARGET) -> Iterator[Watching]:
    """Watch for the block."""
    found = Watching(gateway, server, token, target)
    try:
        found.event()
        yield found
    finally:
        found.close()


def closed(place: KubePlace) -> list[Tale]:
    """All tapes; each is sealed, and none failed."""
    found = tales(place.folder / "state" / "tapes")
    assert {each.status for each in found} == {"closed"}, [each for each in found if each.status != "closed"]
    return found


# -- stop and reload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_sigterm_lets_streams_go_on_and_then_tells_them(place: KubePlace, local_kube: KubeServer, workers: int) -> None:
    place.configure(workers=workers, limits={"drain_seconds": 2})
    with place.serving() as gateway, kubectl(gateway, local_kube) as run, service() as behind:
        idle = Api(gateway)
        assert idle.get("/api/v1/pods").status == 200
        with (
            waiting(run) as quick, waiting(run) as slow, run.forward(behind.port) as (_, forward),
            watching(gateway, local_kube) as watch, kubectl(gateway, local_kube, switches=SPDY) as other,
            waiting(other) as by_spdy,
        ):  # fmt: skip
            started = time.monotonic()
            gateway.process.terminate()
            until(lambda: "draining" in gateway.log, "draining")
            idle.connection.sock.settimeout(2)
            assert idle.connection.sock.recv(1) == b""  # nobody waits for its next request
            assert time.monotonic() - started < 1.5
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", gateway.port))
            out, _ = quick.communicate(b"to its end", timeout=30)
            assert (quick.returncode, out) == (0, b"to its end")
            watch.event()
            assert b"the gateway stops" in cut_off(slow)
            assert b"the gateway stops" in cut_off(by_spdy)
            assert time.monotonic() - started > 1.5
            assert watch.cut()
            assert b"lost connection to pod" in cut_off(forward)
            idle.close()
        assert gateway.process.wait(30) == 0
    found = closed(place)
    assert 1 <= sum(each.http for each in found) <= workers
    assert sorted(each.reason for each in found if not each.http) == ["", *["terminated: the gateway stops"] * 3]


def test_a_reload_changes_the_next_request_and_not_the_watch(place: KubePlace, local_kube: KubeServer) -> None:
    place.configure()
    with place.serving() as gateway, watching(gateway, local_kube) as watch, kubectl(gateway, local_kube) as run:
        api = Api(gateway)
        assert api.create("before-reload").status == 201
        with waiting(run) as running:
            (place.folder / "rules.yaml").write_text(NO_WRITES)
            os.kill(gateway.process.pid, signal.SIGHUP)
            until(lambda: '"reloaded"' in gateway.log, "reload")
            denied = api.create("after-reload")
            assert (denied.status, denied.json["reason"]) == (403, "Forbidden")
            assert 'denied by rule "look-only": nothing is made here' in denied.message
            assert api.get("/api/v1/pods").status == 200
            watch.event()
            out, _ = running.communicate(b"what runs goes on", timeout=30)
            assert (running.returncode, out) == (0, b"what runs goes on")
        (place.folder / "rules.yaml").write_text("rules: [{name: broken")
        os.kill(gateway.process.pid, signal.SIGHUP)
        until(lambda: '"old-configuration-kept"' in gateway.log, "complaint")
        assert api.create("after-reload").status == 403
        (place.folder / "rules.yaml").write_text(ALLOW_ALL)
        assert gateway.gatecast("reload").returncode == 0
        assert api.create("again").status == 201
        watch.event()
        api.close()
    shared = [each for each in closed(place) if each.http]
    assert len(shared) == 1  # all of it is one session


# -- the ends of sessions --------------------------------------------------------------------------------


def test_revoking_a_token_ends_what_it_opened_and_nothing_else(place: KubePlace, local_kube: KubeServer) -> None:
    place.configure()
    token, token_id = place.issue("ana@example.com")
    with (
        place.serving() as gateway,
        kubectl(gateway, local_kube, token=token) as run, kubectl(gateway, local_kube) as others,
        waiting(run) as first, waiting(others) as other,
        watching(gateway, local_kube, token=token) as watch, watching(gateway, local_kube) as kept,
    ):  # fmt: skip
        idle = Api(gateway, token=token)
        assert idle.get("/api/v1/pods").status == 200
        started = time.monotonic()
        assert gateway.gatecast("token", "revoke", token_id).returncode == 0
        assert REVOKED in cut_off(first)
        assert watch.cut()
        assert time.monotonic() - started < 10
        with pytest.raises(http.client.RemoteDisconnected):  # it was the token's
            idle.get("/api/v1/pods")
        refused = idle.get("/api/v1/pods")
        assert (refused.status, refused.json["reason"]) == (401, "Unauthorized")
        assert run.do("get", "pods").returncode == 1
        kept.event()
        out, _ = other.communicate(b"alive", timeout=30)
        assert (other.returncode, out) == (0, b"alive")
        idle.close()
    ended = [each.reason for each in closed(place)]
    assert sum("revoked" in reason for reason in ended) == 2, ended


def test_an_administrator_ends_a_stream_and_a_shared_session(place: KubePlace, local_kube: KubeServer) -> None:
    place.configure()
    with (
        place.serving() as gateway, kubectl(gateway, local_kube) as run,
        waiting(run) as one, waiting(run) as other, watching(gateway, local_kube) as watch,
    ):  # fmt: skip
        live = {row["id"]: row for row in gateway.json("sessions", "live")}
        kinds = {sid: tale(path).http for path in gateway.tapes() if (sid := path.name[:26]) in live}
        (api_session,) = [sid for sid, http_tape in kinds.items() if http_tape]
        streams = sorted(sid for sid, http_tape in kinds.items() if not http_tape)
        assert len(streams) == 2
        assert gateway.gatecast("sessions", "kill", streams[0]).returncode == 0
        assert b"killed" in cut_off(one)
        watch.event()
        assert gateway.gatecast("sessions", "kill", api_session).returncode == 0
        assert watch.cut()
        assert other.poll() is None
        api = Api(gateway)
        assert api.get("/api/v1/pods").status == 200  # in a session of its own
        api.close()
        rows = {row["id"] for row in gateway.json("sessions", "live")}
        assert api_session not in rows
        assert streams[1] in rows
        assert len(rows) == 2
        assert gateway.gatecast("sessions", "kill", api_session).returncode == 1
        gateway.sealed(next(path for path in gateway.tapes() if path.name.startswith(api_session)))
    reasons = {each.path.name[:26]: each.reason for each in closed(place)}
    assert "killed" in reasons[api_session]
    assert "killed" in reasons[streams[0]]


def test_a_shared_session_ends_when_nobody_has_used_it(place: KubePlace, local_kube: KubeServer) -> None:
    place.configure(targets={"kube": {"kubernetes": {"session_idle": "1s"}}})
    with place.serving() as gateway:
        api = Api(gateway)
        assert api.get("/api/v1/pods").status == 200
        first = gateway.tapes()[0]
        assert gateway.sealed(first, 10).status == "closed"
        with watching(gateway, local_kube) as watch:
            time.sleep(2.2)  # a request that runs is use
            watch.event()
            assert len(gateway.tapes()) == 2
            assert api.get("/api/v1/nodes").status == 200
            assert len(gateway.tapes()) == 2
        until(lambda: gateway.sealed(gateway.tapes()[1], 10), "seal")
        assert not gateway.json("sessions", "live")
        api.close()
    found = closed(place)
    assert [each.reason for each in found] == ["idle", "idle"]
    assert [len(each.commands) for each in found] == [1, 2]


# -- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_connections_are_limited(place: KubePlace, local_kube: KubeServer, workers: int) -> None:
    place.configure(
        workers=workers, limits={"max_connections": 6},
        targets={"kube": {}, "few": {"limits": {"max_connections": 2}}},
    )  # fmt: skip
    with place.serving() as gateway, kubectl(gateway, local_kube) as run:
        assert run.do("get", "pods").returncode == 0  # discovery, of whose errors kubectl shows no text, is cached
        with watching(gateway, local_kube, target="few"), kubectl(gateway, local_kube, target="few") as few:
            with waiting(few):
                full = few.do("exec", "web-0", "--", "true")
                assert full.returncode == 1
                assert b'too many connections to "few"' in full.stderr, full.stderr
                assert run.do("get", "pods").returncode == 0
            until(lambda: few.sh("true").returncode == 0, "place at the target")
        held = [Api(gateway) for _ in range(6)]
        until(lambda: [each.get("/api/v1/pods").status for each in held] == [200] * 6, "places")
        said = run.do("get", "pods")
        assert said.returncode == 1
        assert b"too many clients" in said.stderr, said.stderr
        api = Api(gateway)
        refused = api.get("/api/v1/pods")
        assert (refused.status, refused.json["reason"]) == (503, "ServiceUnavailable")
        assert held[0].get("/api/v1/pods").status == 200
        for each in [api, *held]:
            each.close()
        until(lambda: run.do("get", "pods").returncode == 0, "place")


# -- one session, many connections -----------------------------------------------------------------------


def test_twenty_connections_share_one_tape(place: KubePlace, local_kube: KubeServer) -> None:
    place.configure(targets={"kube": {"recording": "written"}})
    with place.serving() as gateway:

        def client(number: int) -> list[int]:
            api = Api(gateway)
            found = [api.create(f"shared-{number}-{count}", n=str(number)).status for count in range(5)]
            found += [api.get(f"{CONFIGMAPS}/shared-{number}-{count}").status for count in range(5)]
            api.close()
            return found

        with watching(gateway, local_kube), ThreadPoolExecutor(20) as pool:
            assert list(pool.map(client, range(20))) == [[201] * 5 + [200] * 5] * 20
        assert len(gateway.json("sessions", "live")) == 1
    (told,) = closed(place)
    assert len(told.commands) == 201
    assert sorted(command["flow"] for command in told.commands) == list(range(201))
    for command in told.commands:
        if command["verb"] not in ("create", "get"):
            continue
        name = command["objects"][0].rpartition("/")[2]
        asked, said = (told.bytes_of(command["flow"], channel) for channel in ("user", "out"))
        method = {"create": b"POST ", "get": b"GET "}[command["verb"]]
        assert asked.startswith(method), command
        said_body = json.loads(said.partition(b"\r\n\r\n")[2])
        asked_name = json.loads(asked.partition(b"\r\n\r\n")[2])["metadata"]["name"] if method == b"POST " else name
        assert said_body["metadata"]["name"] == asked_name
    assert {result["tag"] for result in told.results} >= {"200 OK", "201 Created"}
    sid = told.path.name[:26]
    shown = place.gatecast("replay", sid, "--plain")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("shared-7-3") >= 2
    har = json.loads(place.gatecast("export", sid, "--format", "har").stdout)
    assert len(har["log"]["entries"]) == 201


def test_the_original_track_lasts_as_long_as_the_session(place: KubePlace, local_kube: KubeServer) -> None:
    """It is opened by the first answer that a mask changes; the end of that connection is not its end."""
    auditor = AuditorKey.generate(place.folder / "auditor.key")
    (place.folder / "auditor.pub").write_bytes(auditor.public_pem())
    place.configure(ALLOW_ALL + MASK, targets={"kube": {"original_to": ["auditor.pub"]}})
    with place.serving() as gateway:
        for _ in range(3):
            api = Api(gateway)
            answer = api.get("/api/v1/namespaces/default/secrets/web-0-db")
            assert answer.status == 200, answer.body
            assert base64.b64decode(answer.json["data"]["password"]) == b"[redacted]"
            api.close()
            until(lambda: len(gateway.json("sessions", "live")) == 1, "end of the connection")
    (told,) = closed(place)
    assert len(told.commands) == 3
    (original,) = [path for path in gateway.tapes() if ".original." in path.name]
    kept = b"".join(bytes(record.payload) for record in TapeReader(original, [auditor]).records())
    assert kept.count(base64.b64encode(b"s3cr3t-web-0")) >= 3


# -- several processes -----------------------------------------------------------------------------------


def test_two_workers_serve_everything(place: KubePlace, local_kube: KubeServer) -> None:
    place.configure(workers=2)
    with place.serving() as gateway, kubectl(gateway, local_kube) as run, service() as behind:
        with ThreadPoolExecutor(4) as pool:
            codes = list(pool.map(lambda number: run.sh(f"echo {number}; exit {number}").returncode, range(4)))
            assert codes == [0, 1, 2, 3]
            assert [run.do("get", "pods").returncode for _ in range(3)] == [0, 0, 0]
        data = os.urandom(3 * MIB)
        done = run.sh("cat; echo err >&2", "-i", input=data)
        assert (done.returncode, done.stdout) == (0, data)
        with run.forward(behind.port) as (port, _):
            through(port)
        with waiting(run), waiting(run), waiting(run), waiting(run):
            rows = gateway.json("sessions", "live")
            assert {row["worker"] for row in rows} == {1, 2}
            for row in rows:  # whichever worker has it
                assert gateway.gatecast("sessions", "kill", row["id"]).returncode == 0
    closed(place)


def through(port: int) -> None:
    """A line through a port-forward, and its answer."""
    with connected(port) as wire, wire.makefile("rb") as lines:
        wire.sendall(b"hello\n")
        assert lines.readline() == b"also hello\n"


# -- what is left ----------------------------------------------------------------------------------------


def test_a_thousand_requests_leave_nothing_behind(place: KubePlace, local_kube: KubeServer) -> None:
    place.configure(targets={"kube": {"recording": "written", "kubernetes": {"session_idle": "1s"}}})
    with place.serving() as gateway, kubectl(gateway, local_kube) as run:

        def client(number: int) -> None:
            api = Api(gateway)
            for count in range(50):
                assert api.get("/api/v1/pods" if count % 2 else "/api/v1/namespaces/default/pods/nobody").status
                if count % 10 == number:  # some leave in the middle
                    api.send("GET", f"{CONFIGMAPS}?watch=true")
                    api.close()
            api.close()

        def load() -> None:
            with ThreadPoolExecutor(10) as pool:
                list(pool.map(client, range(10)))
            until(lambda: not gateway.json("sessions", "live"), "end of the session")

        load()  # what the first ones make stays: modules, pools, the allocator's arenas
        descriptors, memory = _descriptors(gateway), gateway.resident_bytes
        load()
        until(lambda: _descriptors(gateway) <= descriptors, "descriptors let go of")
        assert gateway.resident_bytes <= memory + 10 * MIB
        assert len(list(Path(f"/proc/{gateway.process.pid}/task").iterdir())) < 40
        assert run.sh("echo alive").stdout == b"alive\n"
    closed(place)


def _descriptors(gateway: KubeGateway) -> int:
    pids = [gateway.process.pid, *children(gateway.process.pid)]
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
