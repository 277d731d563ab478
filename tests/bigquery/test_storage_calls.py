"""The Storage API through a gateway, by raw gRPC: whose is what, what is masked, refused, recorded, bounded."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest

from protocols.bigquery import storage_wire as wire
from protocols.bigquery.facts import KEPT_PROJECT, KEPT_SQL
from protocols.bigquery.ownership import job_key, table_key
from proxy.core.errors import TapeError
from proxy.core.events import Command
from proxy.core.jobs import Entry, owner_of
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from recorder.format import Kind
from recorder.tape import Tape
from tests.bigquery.gateway_bq import TARGET, Gateway, gateway
from tests.bigquery.people_bq import ANA, BOB, WAIT_SECONDS, Loop, Person
from tests.bigquery.storage_service import PROJECT, SERVICE, Service, Status, storage_service
from tests.ssh.gateway import story

TABLE = f"projects/{PROJECT}/datasets/shop/tables/people"
NAME = f"projects/{PROJECT}/locations/us/sessions/one"
STREAM = f"{NAME}/streams/0"
WRITES = (
    "CreateWriteStream",
    "AppendRows",
    "GetWriteStream",
    "FinalizeWriteStream",
    "BatchCommitWriteStreams",
    "FlushRows",
)
SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("email", pa.string())])
ARROW = {"arrow_schema": {"serialized_schema": SCHEMA.serialize().to_pybytes()}}
MASK = Mask("hide-email", columns=("*.people.email",))
Code = grpc.StatusCode


def masked(identity: Identity, command: Command) -> Verdict:
    return Allow("masked", (MASK,) if command.verb == "read_rows" else ())


@pytest.fixture
def service() -> Iterator[Service]:
    with storage_service() as running:
        running.session(NAME, ARROW)
        running.rows(batch([(1, "p1@example.org"), (2, None)], ARROW), batch([(3, "p3@example.org")]))
        yield running


@pytest.fixture
def gate(bq_loop: Loop, service: Service) -> Iterator[Gateway]:
    with running_gateway(bq_loop, service) as running:
        yield running


@contextlib.contextmanager
def running_gateway(loop: Loop, service: Service, **more: Any) -> Iterator[Gateway]:
    settings = {"storage": f"127.0.0.1:{service.port}", "storage_plain": True, **service.rest.settings}
    target = Target(TARGET, "bigquery", service.rest.host, service.rest.port, settings=settings, recording="written")
    with tempfile.TemporaryDirectory(prefix="gc-bq-") as folder, gateway(loop, Path(folder), target, **more) as running:
        yield running


def batch(rows: list[tuple[int, str | None]], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """An answer of ReadRows."""
    made = pa.RecordBatch.from_pylist([{"id": one, "email": two} for one, two in rows], schema=SCHEMA)
    data = made.serialize().to_pybytes()
    return {"arrow_record_batch": {"serialized_record_batch": data, "row_count": len(rows)}, "row_count": len(rows),
            "uncompressed_byte_size": 7, **(more or {})}  # fmt: skip


class Client:
    """A user's channel."""

    def __init__(self, gate: Gateway, who: Person | None = ANA, token: str | None = None) -> None:
        credentials = grpc.ssl_channel_credentials(gate.authority.read_bytes())
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.secure_channel(f"localhost:{gate.port}", credentials, options=options)
        bearer = token if token is not None else gate.bearer(who) if who is not None else ""
        gate.canaries.append((bearer or "none-at-all").encode())
        self.metadata = [("authorization", f"Bearer {bearer}")] if bearer else []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()

    def call(self, method: str, request: bytes, service: str = SERVICE, timeout: float = WAIT_SECONDS) -> Any:
        return self.channel.unary_stream(service + method)(request, metadata=self.metadata, timeout=timeout)

    def create(self, table: str = TABLE, options: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        session = {"table": table, "data_format": 2, **({"read_options": options} if options else {}), **more}
        request = wire.encode(wire.CREATE_READ_SESSION, {"parent": f"projects/{PROJECT}", "read_session": session})
        (answer,) = self.call("CreateReadSession", request)
        return wire.decode(wire.READ_SESSION, answer, strict=True)

    def read(self, stream: str = STREAM, offset: int = 0) -> list[dict[str, Any]]:
        request = wire.encode(wire.READ_ROWS, {"read_stream": stream, "offset": offset})
        return [wire.decode(wire.ROWS, each, strict=True) for each in self.call("ReadRows", request)]

    def split(self, stream: str = STREAM) -> dict[str, Any]:
        (answer,) = self.call("SplitReadStream", wire.encode(wire.SPLIT_STREAM, {"name": stream}))
        return wire.decode(wire.SPLIT_ANSWER, answer, strict=True)


def rows(answers: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The rows of answers, decoded as a client does."""
    found: list[tuple[Any, ...]] = []
    for each in answers:
        data = each["arrow_record_batch"]["serialized_record_batch"]
        found += [tuple(row.values()) for row in pa.ipc.read_record_batch(pa.py_buffer(data), SCHEMA).to_pylist()]
    return found


@contextlib.contextmanager
def refused(code: grpc.StatusCode, text: str = "") -> Iterator[None]:
    """The call fails so."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error: Any = caught.value
    assert (error.code(), text in error.details()) == (code, True), f"{error.code()}: {error.details()}"


def messages(data: bytes) -> list[bytes]:
    """What a flow of a tape holds: messages behind their lengths."""
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


def test_rows_pass_and_are_on_the_tape(gate: Gateway, service: Service) -> None:
    with Client(gate) as client:
        session = client.create(options={"selected_fields": ["id", "email"]})
        assert (session["name"], session["streams"]) == (NAME, [{"name": STREAM}])
        answers = client.read()
        assert rows(answers) == [(1, "p1@example.org"), (2, None), (3, "p3@example.org")]
        assert answers[0]["uncompressed_byte_size"] == 7
    created, read = service.calls
    assert created.metadata["authorization"] == "Bearer " + gate.credential.secret.reveal()  # type: ignore[union-attr]
    assert created.metadata["x-goog-request-params"] == "read_session.table=" + TABLE.replace("/", "%2F")
    assert wire.decode(wire.READ_ROWS, read.request, strict=True)["read_stream"] == STREAM
    (told,) = gate.stories(ANA)
    assert [each["verb"] for each in told.commands] == ["read_rows", "poll"]
    assert told.commands[0]["objects"] == [f"{PROJECT}.shop.people"]
    first, second = (each["flow"] for each in told.commands)
    assert messages(told.flows[first, "out"])[0].startswith(b"\n" + bytes([len(NAME)]) + NAME.encode())
    assert messages(told.flows[second, "out"]) == [wire.encode(wire.ROWS, each) for each in answers]
    assert messages(told.flows[second, "user"]) == [wire.encode(wire.READ_ROWS, {"read_stream": STREAM, "offset": 0})]
    assert [(each["tag"], each["count"]) for each in told.results] == [("CreateReadSession", 0), ("ReadRows", 3)]
    assert told.results[0]["streams"] == 1


def test_masked_rows_are_masked_on_the_tape_too(bq_loop: Loop, service: Service) -> None:
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        client.create(options={"response_compression_codec": 2})
        answers = client.read()
        assert rows(answers) == [(1, "[redacted]"), (2, None), (3, "[redacted]")]
        assert "uncompressed_byte_size" not in answers[0]
        (told,) = gate.stories(ANA)
        assert messages(told.flows[told.commands[1]["flow"], "out"]) == [
            wire.encode(wire.ROWS, each) for each in answers
        ]
        assert not [each for each in told.flows.values() if b"p1@example.org" in each]
    asked = wire.decode(wire.CREATE_READ_SESSION, service.of("CreateReadSession")[0].request, strict=True)
    assert "response_compression_codec" not in asked["read_session"]["read_options"]


def test_avro_is_masked(bq_loop: Loop, service: Service) -> None:
    schema = (
        '{"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}, '
        '{"name": "email", "type": ["null", "string"]}]}'
    )
    service.session(NAME, {"avro_schema": {"schema": schema}})
    service.rows({"avro_rows": {"serialized_binary_rows": b"\x02\x02\x02x\x04\x00", "row_count": 2}, "row_count": 2})
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        client.create(data_format=1)
        (answer,) = client.read()
    assert answer["avro_rows"]["serialized_binary_rows"] == b"\x02\x02\x14[redacted]\x04\x00"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"arrow_schema": {"serialized_schema": b"another"}}, "not the one"),
        ({"avro_rows": {"serialized_binary_rows": b"p1@example.org"}}, "another form"),
        ({"arrow_record_batch": {"serialized_record_batch": b"p1@example.org"}}, "cannot be read"),
    ],
)
def test_what_cannot_be_masked_is_refused(bq_loop: Loop, service: Service, more: dict[str, Any], text: str) -> None:
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        client.create()
        service.rows(batch([(1, "fine")]), batch([(2, "p1@example.org")], more))
        with refused(Code.PERMISSION_DENIED, text):
            client.read()
        (told,) = gate.stories(ANA)
        assert not [each for each in told.flows.values() if b"p1@example.org" in each]
        assert told.results[-1]["error"]["code"] == "PERMISSION_DENIED"


def test_a_materialized_view_is_not_read_under_masks(bq_loop: Loop, service: Service) -> None:
    """Its columns are other tables', under names of which no mask knows."""
    service.kind = "MATERIALIZED_VIEW"
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        with refused(Code.PERMISSION_DENIED, "no table with columns of its own"):
            client.create()
        assert not service.of("CreateReadSession")


def test_no_session_of_another_form_under_masks(bq_loop: Loop, service: Service) -> None:
    service.session(NAME, {"arrow_schema": {"serialized_schema": b"nonsense"}})
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        with refused(Code.PERMISSION_DENIED, "cannot be read"):
            client.create()
        with refused(Code.NOT_FOUND):
            client.read()


@pytest.mark.parametrize(
    "restriction",
    [
        "email = 'x'", "id > 1 AND STARTS_WITH(`email`, 'p')", "people.EMAIL LIKE 'a%'", "id = 1) OR (email = 'x'",
        f"id IN (SELECT id FROM `{PROJECT}.shop.people` WHERE email = 'x')", "id IN (SELECT id FROM shop.others)", "][",
        "TO_JSON_STRING(people) LIKE '%p1@%'",
    ],
)  # fmt: skip
def test_a_restriction_on_a_masked_column_is_refused(bq_loop: Loop, service: Service, restriction: str) -> None:
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        with refused(Code.PERMISSION_DENIED, "masked"):
            client.create(options={"row_restriction": restriction})
        assert not service.calls


def test_a_restriction_on_other_columns_passes(bq_loop: Loop, service: Service) -> None:
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        client.create(options={"row_restriction": "id > 1 AND id < 7"})
        (told,) = gate.stories(ANA)
    assert "where id > 1 AND id < 7" in told.commands[0]["text"]
    assert len(service.calls) == 1


def test_foreign_and_unknown_names_read_alike(gate: Gateway, service: Service) -> None:
    with Client(gate) as ana, Client(gate, BOB) as bob:
        ana.create()
        for name in (STREAM, f"{STREAM}x", "nonsense", f"projects/{PROJECT}/locations/us/jobs/j1/streams/_default"):
            for use in (bob.read, bob.split):
                with refused(Code.NOT_FOUND, f"Not found: Stream {name}"):
                    use(name)
        assert len(service.calls) == 1
        assert len(rows(ana.read())) == 3


def test_streams_are_split(gate: Gateway, service: Service) -> None:
    answer = {"primary_stream": {"name": f"{NAME}/streams/2"}, "remainder_stream": {"name": f"{NAME}/streams/3"}}
    service.answers["SplitReadStream"] = lambda request: iter([wire.encode(wire.SPLIT_ANSWER, answer)])
    with Client(gate) as client:
        client.create()
        assert client.split() == answer
        assert len(rows(client.read(f"{NAME}/streams/3"))) == 3


def test_a_result_is_its_owners_under_the_masks_of_its_job(gate: Gateway, service: Service) -> None:
    """The anonymous table of a query, and the job's own stream."""
    facts = {KEPT_SQL: f"SELECT id, email FROM `{PROJECT}.shop.people`", KEPT_PROJECT: PROJECT}
    keys = (table_key(TARGET, PROJECT, "_anon", "anon1"), job_key(TARGET, PROJECT, "job1", "us"))
    mine = [Entry(key, owner_of(ANA.identity), masks=(MASK,), rule="r", facts=facts) for key in keys]
    assert gate.gate.jobs is not None
    gate.loop.call(gate.gate.jobs.add(mine))
    table = f"projects/{PROJECT}/datasets/_anon/tables/anon1"
    stream = f"projects/{PROJECT}/locations/us/jobs/job1/streams/_default"
    with Client(gate) as ana, Client(gate, BOB) as bob:
        with refused(Code.NOT_FOUND, f"Not found: Table {PROJECT}:_anon.anon1"):
            bob.create(table)
        with refused(Code.NOT_FOUND, "Not found: Stream"):
            bob.read(stream)
        assert not service.calls
        ana.create(table)
        for name in (STREAM, stream):
            assert rows(ana.read(name)) == [(1, "[redacted]"), (2, None), (3, "[redacted]")]
        with refused(Code.PERMISSION_DENIED, "nobody can tell"):
            ana.create(table, options={"row_restriction": "id = 1"})


@pytest.mark.parametrize("method", WRITES)
def test_writes_are_denied(gate: Gateway, service: Service, method: str) -> None:
    with Client(gate) as client:
        with refused(Code.PERMISSION_DENIED, "Storage Write API is not allowed"):
            list(client.call(method, b"", "/google.cloud.bigquery.storage.v1.BigQueryWrite/"))
        assert "refused" in marks(gate)
    assert not service.calls


def marks(gate: Gateway) -> str:
    """The remarks on all tapes."""
    gate.idle()
    return repr([bytes(each.payload) for tape in gate.tapes() for each in tape.records() if each.kind == Kind.MARK])


@pytest.mark.parametrize(
    "method",
    [
        "/google.cloud.bigquery.storage.v1.BigQueryRead/Other",
        "/a.B/C",
        "/google.cloud.bigquery.storage.v1beta2.BigQueryRead/ReadRows",
    ],
)
def test_unknown_methods(gate: Gateway, service: Service, method: str) -> None:
    with Client(gate) as client, refused(Code.UNIMPLEMENTED):
        list(client.call(method, b"", ""))
    assert not service.calls


@pytest.mark.parametrize("token", ["", "gca_wrong", "canary-nobody"])
def test_without_a_good_token_nothing_is_served(gate: Gateway, service: Service, token: str) -> None:
    with Client(gate, token=token) as client:
        for method in ("CreateReadSession", "ReadRows"):
            with refused(Code.UNAUTHENTICATED):
                list(client.call(method, b""))
        with refused(Code.UNAUTHENTICATED):
            list(client.call("AppendRows", b"", "/google.cloud.bigquery.storage.v1.BigQueryWrite/"))
    assert not service.calls
    assert not gate.tapes()


def asking(parent: str = "projects/acme", **session: Any) -> bytes:
    """A CreateReadSession."""
    return wire.encode(wire.CREATE_READ_SESSION, {"parent": parent, "read_session": session})


@pytest.mark.parametrize(
    "request_",
    [
        b"", b"\xff" * 9, wire.encode(wire.CREATE_READ_SESSION, {"parent": "projects/acme"}), asking(table="people"),
        asking("acme", table=TABLE), asking(table=TABLE, name="x"), asking(table=TABLE[:-6] + "*"),
        asking(table=TABLE, data_format=9), asking(table=TABLE) + b"\xfa\x01\x00",
        asking(table=TABLE) + asking(table=TABLE + "2"),
    ],
)  # fmt: skip
def test_garbage(gate: Gateway, service: Service, request_: bytes) -> None:
    with Client(gate) as client:
        with refused(Code.INVALID_ARGUMENT, "gatecast: "):
            list(client.call("CreateReadSession", request_))
        for method in ("ReadRows", "SplitReadStream"):
            with refused(Code.INVALID_ARGUMENT):
                list(client.call(method, b"\xff"))
    assert not service.calls


def test_a_denied_table_is_denied(bq_loop: Loop, service: Service) -> None:
    def rule(identity: Identity, command: Command) -> Verdict:
        return Deny("no-people", "not for you") if f"{PROJECT}.shop.people" in command.objects else Allow("others")

    with running_gateway(bq_loop, service, rule=rule) as gate, Client(gate) as client:
        for table in (TABLE, f"{TABLE}$20260101", f"{TABLE}@0"):
            with refused(Code.PERMISSION_DENIED, "refused by no-people: not for you"):
                client.create(table)
    assert not service.calls


def test_a_held_call_waits(bq_loop: Loop, service: Service) -> None:
    def rule(identity: Identity, command: Command) -> Verdict:
        return Hold("ask", ("group:leads",), 60.0) if command.verb == "read_rows" else Allow("polls")

    with running_gateway(bq_loop, service, rule=rule) as gate:
        with Client(gate) as client:
            found: list[Any] = []
            waiting = threading.Thread(target=lambda: found.append(client.create()))
            waiting.start()
            held = gate.held()
            assert not service.calls
            gate.decide(held.id)
            waiting.join(WAIT_SECONDS)
            assert found[0]["name"] == NAME
            assert len(rows(client.read())) == 3
            with Client(gate) as other:  # denied, and given up
                call = other.call("CreateReadSession", service.calls[0].request)
                gate.decide(gate.held(1).id, approve=False, reason="no")
                with refused(Code.PERMISSION_DENIED, "denied by mia@acme.com: no (approval "):
                    list(call)
                call = other.call("CreateReadSession", service.calls[0].request)
                gate.held(2)
                call.cancel()
                with refused(Code.CANCELLED):
                    list(call)
        gate.stop()
        (told,) = map(story, gate.tapes())
        assert [each["state"] for each in told.approvals][-1] == "withdrawn"
    assert len(service.of("CreateReadSession")) == 1


def test_what_the_target_says_passes_with_its_code(gate: Gateway, service: Service) -> None:
    def answer(request: bytes) -> Iterator[bytes]:
        raise Status(Code.RESOURCE_EXHAUSTED, "quota of acme")

    service.answers["CreateReadSession"] = answer
    with Client(gate) as client:
        with refused(Code.RESOURCE_EXHAUSTED, "quota of acme"):
            client.create()
        (told,) = gate.stories(ANA)
        assert told.results[0]["error"] == {"code": "RESOURCE_EXHAUSTED", "message": "quota of acme"}


def test_the_gates_own_credential_is_no_fault_of_users(gate: Gateway, service: Service) -> None:
    def answer(request: bytes) -> Iterator[bytes]:
        raise Status(Code.UNAUTHENTICATED, "token of account x is over")

    service.answers["CreateReadSession"] = answer
    with Client(gate) as client, refused(Code.INTERNAL, "did not accept the gateway's credential"):
        client.create()


def test_errors_are_masked(bq_loop: Loop, service: Service) -> None:
    def answer(request: bytes) -> Iterator[bytes]:
        yield wire.encode(wire.ROWS, batch([(1, "x")]))
        raise Status(Code.INVALID_ARGUMENT, "bad value p1@example.org")

    service.answers["ReadRows"] = answer
    with running_gateway(bq_loop, service, rule=masked) as gate, Client(gate) as client:
        client.create()
        with pytest.raises(grpc.RpcError) as caught:
            client.read()
        error: Any = caught.value
        assert (error.code(), "example.org" in error.details()) == (Code.INVALID_ARGUMENT, False)


def test_a_target_that_dies_in_the_middle(gate: Gateway, bq_loop: Loop) -> None:
    with storage_service() as service:
        service.session(NAME, ARROW)
        go = threading.Event()

        def answer(request: bytes) -> Iterator[bytes]:
            yield wire.encode(wire.ROWS, batch([(1, "x")]))
            go.wait(WAIT_SECONDS / 2)

        service.answers["ReadRows"] = answer
        with running_gateway(bq_loop, service) as other, Client(other) as client:
            client.create()
            call = client.call("ReadRows", wire.encode(wire.READ_ROWS, {"read_stream": STREAM}))
            assert next(call)
            service.stop()
            with refused(Code.UNAVAILABLE):
                next(call)
            go.set()


def test_a_user_who_leaves_is_not_read_for(gate: Gateway, service: Service) -> None:
    def answer(request: bytes) -> Iterator[bytes]:
        while True:
            yield wire.encode(wire.ROWS, batch([(1, "x")]))

    service.answers["ReadRows"] = answer
    with Client(gate) as client:
        client.create()
        call = client.call("ReadRows", wire.encode(wire.READ_ROWS, {"read_stream": STREAM}))
        assert next(call)
        call.cancel()
        assert service.of("ReadRows")[0].over.wait(WAIT_SECONDS)
    gate.stop()
    (told,) = map(story, gate.tapes())
    assert told.results[-1]["tag"] == "ended early"


def test_a_slow_reader_slows_the_target(gate: Gateway, service: Service) -> None:
    """What waits for it is bounded by windows and buffers, not by what the target would send."""
    message = wire.encode(wire.ROWS, {"arrow_record_batch": {"serialized_record_batch": bytes(1 << 20)}})

    def answer(request: bytes) -> Iterator[bytes]:
        for _ in range(200):
            yield message

    service.answers["ReadRows"] = answer
    with Client(gate) as client:
        client.create()
        call = client.call("ReadRows", wire.encode(wire.READ_ROWS, {"read_stream": STREAM}))
        assert next(call) == message
        asked = service.of("ReadRows")[0]
        before = -1
        while asked.sent != before:  # until nothing moves for a while
            before = asked.sent
            asked.over.wait(0.5)
        assert before < 64, before
        assert sum(1 for _ in call) == 199


def test_a_tape_that_fails_ends_the_call(gate: Gateway, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(gate) as client:
        client.create()
        answers = [wire.encode(wire.ROWS, batch([(number, "x")])) for number in range(3)]

        def answer(request: bytes) -> Iterator[bytes]:
            yield answers[0]
            monkeypatch.setattr(Tape, "written", _fails)
            yield from answers[1:]

        service.answers["ReadRows"] = answer
        call = client.call("ReadRows", wire.encode(wire.READ_ROWS, {"read_stream": STREAM}))
        seen: list[bytes] = []
        with refused(Code.ABORTED, "cannot be recorded"):
            seen.extend(call)
        assert seen in ([], answers[:1])
        monkeypatch.undo()


async def _fails(tape: object) -> None:
    raise TapeError("the disk is full")


def test_an_administrator_ends_it(gate: Gateway, service: Service) -> None:
    go = threading.Event()

    def answer(request: bytes) -> Iterator[bytes]:
        yield wire.encode(wire.ROWS, batch([(1, "x")]))
        go.wait(WAIT_SECONDS / 2)

    service.answers["ReadRows"] = answer
    with Client(gate) as client:
        client.create()
        call = client.call("ReadRows", wire.encode(wire.READ_ROWS, {"read_stream": STREAM}))
        assert next(call)
        (session,) = {each["id"] for each in gate.live() if each["id"]}
        gate.kill(session)
        with refused(Code.ABORTED, "the session has ended"):
            next(call)
        go.set()


def test_a_revoked_login_reads_no_more(gate: Gateway, service: Service) -> None:
    with Client(gate) as client:
        client.create()
        gate.people.revoked.add(ANA.identity.subject)
        with refused(Code.UNAUTHENTICATED):
            client.read()
    assert not service.of("ReadRows")


def test_a_restart_keeps_whose_sessions_are(bq_loop: Loop, service: Service) -> None:
    with running_gateway(bq_loop, service, rule=masked) as gate:
        with Client(gate) as client:
            client.create()
        gate.restart()
        with Client(gate) as client:
            assert rows(client.read()) == [(1, "[redacted]"), (2, None), (3, "[redacted]")]
        with Client(gate, BOB) as client, refused(Code.NOT_FOUND):
            client.read()


def test_nothing_is_left_behind(gate: Gateway, service: Service) -> None:
    """The server, its folder and the channels are there while somebody is connected."""
    with Client(gate) as client:
        client.create()
        server = gate.gate.shared["bigquery/storage"]
        folder = server._folder
        assert folder.stat().st_mode & 0o777 == 0o700
        stranger = grpc.insecure_channel(f"unix:{folder / 'server'}")
        with refused(Code.PERMISSION_DENIED, "this is no way in"):
            list(stranger.unary_stream(f"{SERVICE}ReadRows")(b"", metadata=client.metadata))
        stranger.close()
    gate.stop()
    assert not folder.exists()
    assert not server._connections
    assert not server._channels._open


def test_deadlines_go_on(gate: Gateway, service: Service) -> None:
    """The target learns that nobody waits any more, and the tape tells."""
    go = threading.Event()

    def answer(request: bytes) -> Iterator[bytes]:
        go.wait(WAIT_SECONDS / 2)
        yield from ()

    with Client(gate) as client:
        client.create()
        service.answers["ReadRows"] = answer
        request = wire.encode(wire.READ_ROWS, {"read_stream": STREAM})
        with refused(Code.DEADLINE_EXCEEDED):
            list(client.call("ReadRows", request, timeout=0.3))
        assert service.of("ReadRows")[0].over.wait(WAIT_SECONDS / 2)
        go.set()


def test_names_of_a_target_that_make_no_sense(gate: Gateway, service: Service) -> None:
    """A read session that could not be told from another's is given to nobody."""
    service.session("projects/acme/jobs/x", ARROW)
    with Client(gate) as client, refused(Code.INTERNAL, "without a usable name"):
        client.create()
