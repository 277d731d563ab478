"""The life of a BigQuery gateway: stop, reload, revocation, kills, limits, shared sessions, who leaves, what is left.

A real ``gatecast serve`` before the stand-in that tests tell what to do. Whatever ends a request says why in an answer,
held jobs say it in their state, and tapes are sealed. tests/kubernetes/test_lifecycle_kubernetes_peers.py is its model.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from protocols.bigquery import storage_wire as wire
from tests.bigquery.place_bq import ALLOW_ALL, HOLDS, PROJECT, TARGET, V2, Api, BqGateway, BqPlace, job_of
from tests.bigquery.scripted_bq import Asked, Handler, Scripted, scripted
from tests.bigquery.storage_service import SERVICE, storage_service
from tests.bigquery.test_storage_calls import ARROW, NAME, STREAM, TABLE, asking, batch
from tests.peers.ssh import children
from tests.ssh.running import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]
MIB: Final = 1 << 20
SELECT: Final = "SELECT id, email FROM crm.people WHERE email = '{}'"
NO_READS: Final = (
    ALLOW_ALL
    + """\
  - {name: no-reading, commands: {verbs: [read_rows]}, deny: {reason: nothing is read here}}
"""
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with scripted(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, service: Scripted) -> Iterator[BqPlace]:
    """A place whose tapes must verify in the end."""
    service.scripts.clear()
    service.release.clear()
    found = BqPlace(tmp_path, service)
    yield found
    service.release.set()
    verified = found.gatecast("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def stalls(service: Scripted, word: str) -> None:
    """Have requests with a word wait until the service is told to go on."""

    def stall(handler: Handler, asked: Asked) -> None:
        handler.stall()
        handler.served(asked)

    service.scripts[word] = stall


@contextmanager
def asking_for(api: Api, method: str, path: str, value: Any = None) -> Iterator[list[Any]]:
    """Ask in a thread: the list gets the answer, or the error that ends it."""
    said: list[Any] = []

    def ask() -> None:
        try:
            said.append(api.ask(method, path, value))
        except (OSError, http.client.HTTPException) as error:
            said.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield said
    finally:
        thread.join(30)
        api.close()
    assert said


def told(said: list[Any]) -> str:
    """What a request that was ended was told; "" where its connection was."""
    (answer,) = said
    return "" if isinstance(answer, Exception) else str(answer.code) + answer.message


# -- stop and reload -------------------------------------------------------------------------------------


def test_sigterm_drains_uploads_and_leaves_what_is_held(place: BqPlace, service: Scripted) -> None:
    place.configure(ALLOW_ALL + HOLDS, limits={"drain_seconds": 10})
    with place.serving() as gateway:
        api, idle = Api(gateway), Api(gateway)
        assert idle.get("/datasets").code == 200
        assert api.insert("stop1", SELECT.format("ask_first stop1")).json["status"]["state"] == "PENDING"
        load = {"load": {"destinationTable": {"projectId": PROJECT, "datasetId": "crm", "tableId": "people"}}}
        body = {"jobReference": {"projectId": PROJECT, "jobId": "stopload"}, "configuration": load}
        begun = api.ask("POST", f"/upload{V2}/jobs?uploadType=resumable", body)
        assert begun.code == 200, begun.body
        where = begun.headers["Location"].partition(f"/bq/{TARGET}")[2]
        size = 3 * MIB
        api.connection.putrequest("PUT", f"/bq/{TARGET}{where}")
        api.connection.putheader("Authorization", f"Bearer {gateway.token}")
        api.connection.putheader("Content-Length", str(size))
        api.connection.putheader("Content-Range", f"bytes 0-{size - 1}/{size}")
        api.connection.endheaders()
        api.connection.send(b"x" * MIB)
        time.sleep(0.2)  # it is on its way
        gateway.process.terminate()
        until(lambda: "draining" in gateway.log, "draining")
        idle.connection.sock.settimeout(5)
        assert idle.connection.sock.recv(1) == b""  # nobody waits for its next request
        idle.close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", gateway.port))
        api.connection.send(b"x" * (size - MIB))
        answer = api.connection.getresponse()
        assert (answer.status, json.loads(answer.read())["jobReference"]["jobId"]) == (200, "stopload")
        api.close()
        assert gateway.process.wait(30) == 0
    assert service.runs(f"load {size}") == 1
    (tale,) = place.closed()
    assert tale.reason == "the gateway stops"
    with place.serving("log-2") as gateway:
        api = Api(gateway)
        assert (api.state("stopload"), api.state("stop1")) == ("DONE", "PENDING")
        gateway.approve("ask_first stop1")
        until(lambda: api.state("stop1") == "DONE", "job")
        assert service.runs("ask_first stop1") == 1
        api.close()


def test_a_reload_changes_the_next_query_and_not_the_polls_of_the_last(place: BqPlace) -> None:
    place.configure()
    with place.serving() as gateway:
        api = Api(gateway)
        assert api.insert("reload1", SELECT.format("reload")).code == 200
        (place.folder / "rules.yaml").write_text(NO_READS)
        os.kill(gateway.process.pid, signal.SIGHUP)
        until(lambda: '"reloaded"' in gateway.log, "reload")
        denied = api.query(SELECT.format("reload"))
        assert (denied.code, denied.reason) == (403, "accessDenied")
        assert 'denied by rule "no-reading": nothing is read here' in denied.message
        assert api.state("reload1") == "DONE"
        assert api.get("/queries/reload1").json["totalRows"] == "2"
        (place.folder / "rules.yaml").write_text("rules: [{name: broken")
        os.kill(gateway.process.pid, signal.SIGHUP)
        until(lambda: '"old-configuration-kept"' in gateway.log, "complaint")
        assert api.query(SELECT.format("reload")).code == 403
        (place.folder / "rules.yaml").write_text(ALLOW_ALL)
        assert gateway.gatecast("reload").returncode == 0
        assert api.query(SELECT.format("reload")).code == 200
        api.close()
    assert len(place.closed()) == 1  # all of it is one session


# -- the ends of sessions --------------------------------------------------------------------------------


@contextmanager
def storage_call(gateway: BqGateway, token: str, method: str, request: bytes) -> Iterator[Any]:
    """A call of the Storage API through the gateway."""
    trust = grpc.ssl_channel_credentials(gateway.authority.read_bytes())
    with grpc.secure_channel(f"localhost:{gateway.port}", trust, [("grpc.max_receive_message_length", -1)]) as channel:
        yield channel.unary_stream(SERVICE + method)(
            request, metadata=[("authorization", f"Bearer {token}")], timeout=60
        )


def one_batch(go_on: threading.Event) -> Iterator[bytes]:
    """One answer of ReadRows, and then none until the event."""
    yield wire.encode(wire.ROWS, batch([(1, "p1@example.org")], ARROW))
    go_on.wait(60)


@pytest.mark.parametrize("how", ["revoked", "killed"])
def test_the_end_of_a_session_ends_pages_holds_and_calls(place: BqPlace, service: Scripted, how: str) -> None:
    with storage_service() as storage:
        plain = {"storage": f"127.0.0.1:{storage.port}", "storage_plain": True}
        place.configure(ALLOW_ALL + HOLDS, targets={TARGET: {"bigquery": plain}})
        token, token_id = place.issue("ana@example.com")
        other = place.issue("bob@example.com")[0]
        stalls(service, "/queries/end")
        go_on = threading.Event()
        storage.session(NAME, ARROW)
        storage.answers["ReadRows"] = lambda request: one_batch(go_on)
        with place.serving() as gateway:
            api, quiet = Api(gateway, token=token), Api(gateway, token=other)
            assert api.insert(f"end{how}", SELECT.format("end")).code == 200
            assert api.insert(f"held{how}", SELECT.format(f"ask_first {how}")).json["status"]["state"] == "PENDING"
            assert quiet.get("/datasets").code == 200
            gateway.held(f"ask_first {how}")
            (mine,) = [row["id"] for row in gateway.call("sessions.live") if "ana" in json.dumps(row["identity"])]
            with (
                asking_for(Api(gateway, token=token), "GET", f"{V2}/queries/end{how}") as page,
                asking_for(Api(gateway, token=token), "GET", f"{V2}/queries/held{how}?timeoutMs=60000") as poll,
                storage_call(gateway, token, "CreateReadSession", asking(table=TABLE, data_format=2)) as created,
            ):
                assert len(list(created)) == 1
                with storage_call(
                    gateway, token, "ReadRows", wire.encode(wire.READ_ROWS, {"read_stream": STREAM})
                ) as reading:
                    assert next(reading) is not None
                    service.wait(f"/queries/end{how}")
                    started = time.monotonic()
                    if how == "revoked":
                        assert gateway.gatecast("token", "revoke", token_id).returncode == 0
                    else:
                        gateway.call("sessions.kill", id=mine)
                    with pytest.raises(grpc.RpcError) as ended:
                        next(reading)
                    go_on.set()
                    assert ended.value.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAUTHENTICATED)
            assert time.monotonic() - started < 12
            word = "revoked" if how == "revoked" else "killed"
            for said in (told(page), told(poll)):  # of the poll: what has become of its job, perhaps
                assert said == "" or (said[:3] in ("503", "400") and word in said), said
            until(lambda: not gateway.call("approvals.list", state="pending"), "withdrawal")
            assert service.runs(f"ask_first {how}") == 0
            assert quiet.get("/datasets").code == 200
            api.close()
            if how == "revoked":
                assert api.get(f"/jobs/end{how}").code == 401
            else:  # in a session of its own, its jobs are there, and what was held has ended
                assert api.state(f"end{how}") == "DONE"
                assert api.get(f"/jobs/held{how}").json["status"]["errorResult"]["reason"] == "stopped"
            api.close()
            quiet.close()
            service.release.set()
    reasons = [each.reason for each in place.closed()]
    assert sum(word in reason for reason in reasons) == 1, reasons


def test_a_shared_session_ends_when_nobody_has_used_it(place: BqPlace, service: Scripted) -> None:
    place.configure(targets={TARGET: {"bigquery": {"session_idle": "1s"}}})
    stalls(service, "idle_stall")
    with place.serving() as gateway:
        api = Api(gateway)
        assert api.get("/datasets").code == 200
        first = gateway.tapes()[0]
        assert gateway.sealed(first, 10).status == "closed"
        query = {"query": SELECT.format("idle_stall"), "useLegacySql": False}
        with asking_for(Api(gateway), "POST", f"{V2}/queries", query) as said:
            service.wait("idle_stall")
            time.sleep(1.6)  # a request that runs is use
            assert len(gateway.tapes()) == 2
            assert api.get("/datasets").code == 200
            service.release.set()
        assert said[0].code == 200
        until(lambda: not gateway.call("sessions.live"), "end of the session")
        api.close()
    found = place.closed()
    assert [each.reason for each in found] == ["idle", "idle"]
    assert [len(each.commands) for each in found] == [1, 2]


# -- who leaves --------------------------------------------------------------------------------------------


def test_who_leaves_keeps_a_held_job_and_takes_other_requests_back(place: BqPlace, service: Scripted) -> None:
    place.configure(ALLOW_ALL + HOLDS)
    with place.serving() as gateway:
        leaving = Api(gateway)
        leaving.send("POST", f"{V2}/jobs", job_of("left1", SELECT.format("ask_first left1")))
        gateway.held("ask_first left1")
        leaving.close()
        other = Api(gateway)
        rows = {"rows": [{"json": {"id": 1, "email": "left2"}}]}
        other.send("POST", f"{V2}/datasets/crm/tables/ask_first_left2/insertAll", rows)
        held = gateway.held("ask_first_left2")
        other.close()
        until(lambda: gateway.json("approvals", "show", held)["state"] == "withdrawn", "withdrawal")
        gateway.approve("ask_first left1")
        api = Api(gateway)
        until(lambda: api.state("left1") == "DONE", "job")
        assert api.get("/queries/left1").json["totalRows"] == "2"
        assert (service.runs("ask_first left1"), service.runs("left2")) == (1, 0)
        api.close()
    place.closed()


# -- limits ----------------------------------------------------------------------------------------------


def test_connections_and_places_are_limited(place: BqPlace, service: Scripted) -> None:
    place.configure(
        limits={"max_connections": 6}, targets={TARGET: {}, "few": {"limits": {"max_connections": 1}}}
    )  # fmt: skip
    stalls(service, "few_stall")
    with place.serving() as gateway:
        query = {"query": SELECT.format("few_stall"), "useLegacySql": False}
        with asking_for(Api(gateway, target="few"), "POST", f"{V2}/queries", query) as said:
            service.wait("few_stall")
            few = Api(gateway, target="few")
            full = few.get("/datasets")
            assert full.code == 503
            assert 'too many connections to "few"' in full.message
            few.close()
            service.release.set()
        assert said[0].code == 200
        held = [Api(gateway) for _ in range(6)]
        until(lambda: [each.get("/datasets").code for each in held] == [200] * 6, "places")
        api = Api(gateway)
        refused = api.get("/datasets")
        assert refused.code == 503
        assert "too many clients" in refused.message
        assert held[0].get("/datasets").code == 200
        for each in [api, *held]:
            each.close()
        until(lambda: api.get("/datasets").code == 200, "place")
        api.close()
    place.closed()


def test_twenty_connections_share_one_bigquery_tape(place: BqPlace, service: Scripted) -> None:
    place.configure(targets={TARGET: {"recording": "written"}})
    with place.serving() as gateway:

        def client(number: int) -> list[int]:
            api = Api(gateway)
            found = [api.insert(f"shared-{number}-{count}", SELECT.format(f"s{count}")).code for count in range(3)]
            found += [api.get(f"/queries/shared-{number}-{count}").code for count in range(3)]
            api.close()
            return found

        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(client, range(20))) == [[200] * 6] * 20
        assert len(gateway.call("sessions.live")) == 1
    (tale,) = place.closed()
    assert len(tale.commands) == 120
    assert sorted(command["flow"] for command in tale.commands) == list(range(120))
    for number in range(20):
        for count in range(3):
            name = f"shared-{number}-{count}"
            said = [
                flow for flow in tale.allowed
                if f'"jobId":"{name}"'.encode() in tale.bytes_of(flow, "out")
            ]  # fmt: skip
            assert len(said) == 2, name  # the job, and its page: each under its own question
            for flow in said:
                assert name.encode() in tale.bytes_of(flow, "user")


# -- what is left ----------------------------------------------------------------------------------------


def test_a_slow_reader_of_a_large_page_is_bounded(place: BqPlace, service: Scripted) -> None:
    """50 MB of a page, of which nobody reads but the first bytes; then all of it."""
    service.rows, before = [(str(number), f"{number:0>1000}") for number in range(48_000)], service.rows
    place.configure(targets={TARGET: {"recording": "written"}})
    try:
        with place.serving() as gateway:
            api = Api(gateway)
            assert api.insert("large1", SELECT.format("large")).code == 200
            memory = gateway.resident_bytes
            sizes = []
            api.send("GET", f"{V2}/queries/large1")
            answer = api.connection.getresponse()
            assert answer.status == 200
            seen = len(answer.read(1000))
            for _ in range(10):
                time.sleep(0.1)  # time for it to read ahead, if it did
                sizes.append(gateway.resident_bytes)
            assert max(sizes) - memory < 24 * MIB, [size - memory for size in sizes]
            other = Api(gateway)
            assert other.get("/datasets").code == 200  # it slows nobody else
            other.close()
            while piece := answer.read(1 << 20):
                seen += len(piece)
            assert seen > 45 * MIB
            api.close()
    finally:
        service.rows = before
    place.closed()


def test_a_thousand_requests_leave_nothing_behind(place: BqPlace, service: Scripted) -> None:
    place.configure(targets={TARGET: {"recording": "written", "bigquery": {"session_idle": "1s"}}})
    stalls(service, "leave_me")
    with place.serving() as gateway:

        def client(number: int) -> None:
            api = Api(gateway)
            for count in range(50):
                match count % 4:
                    case 0:
                        assert api.query(SELECT.format(f"t{number}")).code == 200
                    case 1:
                        assert api.get("/jobs/nobody").code == 404
                    case 2:
                        assert api.add("x").code == 200
                    case _:
                        assert api.get("/datasets").code == 200
                if count % 25 == number:  # some leave in the middle
                    api.send("GET", f"{V2}/datasets/leave_me")
                    api.close()
            api.close()

        def load() -> None:
            with ThreadPoolExecutor(10) as pool:
                list(pool.map(client, range(10)))
            service.release.set()
            until(lambda: not gateway.call("sessions.live"), "end of the session")

        load()  # what the first ones make stays: modules, pools, the allocator's arenas
        descriptors, memory = _descriptors(gateway), gateway.resident_bytes
        load()
        # As many connections to the target may be kept for the next requests as ran at once.
        until(lambda: _descriptors(gateway) <= descriptors + 10, "descriptors let go of")
        assert gateway.resident_bytes <= memory + 10 * MIB
        assert len(list(Path(f"/proc/{gateway.process.pid}/task").iterdir())) < 40
        api = Api(gateway)
        assert api.get("/datasets").code == 200
        api.close()
    place.closed()


def _descriptors(gateway: BqGateway) -> int:
    pids = [gateway.process.pid, *children(gateway.process.pid)]
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
