"""A running gateway of BigQuery inside the test's process, in a thread with an event loop of its own.

What is real: the TLS listener with its certificate, Connections, the recorder with sealed tapes, the registry of jobs
and the approvals on SQLite, the workers that read SQL, the masks, and the admin socket, by which another process may
decide. What is fake: who has which token (People), the credential of the target, and the rules, which are a function.
Real clients are programs or worker processes, so that the test's own thread is free to approve, look and restart.

restart() ends a gateway and begins another on the same state and the same port, as a restarted process would.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

import protocols
from protocols.bigquery import sts
from proxy.admin.handlers import Admin
from proxy.admin.server import AdminServer
from proxy.approvals import Approvals
from proxy.certificates import server_context
from proxy.connections import Connection, Connections, SessionRecorder
from proxy.core.events import Command
from proxy.core.gate import Gate
from proxy.core.parties import Credential, Identity, Secret, Target
from proxy.core.stream import Stream
from proxy.core.verdict import Verdict
from proxy.http.links import Links
from proxy.http.sessions import sessions_of
from proxy.masking.masker import Masking
from proxy.masking.warehouse_scan import WarehouseScans
from proxy.store.approvals import Record
from proxy.store.database import Database
from proxy.store.jobs import JobStore
from recorder.reader import TapeReader
from recorder.seal import SealKey
from recorder.verify import verify
from recorder.verify_report import VERIFIED
from tests.bigquery.people_bq import ANA, BOB, MIA, WAIT_SECONDS, Loop, People, Person, Rule, allow_all, policy_of
from tests.bigquery.running_bq import Access, Door
from tests.fakes import FakeCredentials, FakeTargets, words
from tests.peers.bigquery import ROOT, TOKEN, UNIVERSE, BigQueryServer
from tests.peers.certificates import Authority
from tests.ssh.gateway import Story, story

T = TypeVar("T")
TARGET: Final = "warehouse"
LISTENER: Final = "bigquery"
DECIDE: Final = """
import sys
from pathlib import Path
from proxy.admin.client import AdminClient
path, verb, approval, reason, token = sys.argv[1:]
AdminClient(Path(path)).call(f"approvals.{verb}", id=approval, reason=reason, token=token)
"""
HOSTS: Final = (f"bigquery.{UNIVERSE}", f"bigquerystorage.{UNIVERSE}", f"sts.{UNIVERSE}", "localhost", "127.0.0.1")
NO_FAILURES: Final = frozenset({"connection-failed", "recording-failed", "tape-not-sealed"})

# -- the gateway --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Life:
    """What a start of the gateway makes, and its end closes."""

    database: Database
    recorder: SessionRecorder
    approvals: Approvals
    admin: AdminServer
    gate: Gate
    connections: Connections
    stop: asyncio.Event
    killed: bool = False


@dataclass(slots=True)
class Gateway:
    """A running gateway. rule may be changed at any time: the next command meets the new one.

    more: what of the Gate is another, by the names of its fields. logs: what it has logged.
    """

    loop: Loop
    folder: Path
    target: Target
    rule: Rule = allow_all
    credential: Credential = field(default_factory=lambda: Credential("gate", Secret(TOKEN)))
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    people: People = field(default_factory=People)
    key: SealKey = field(default_factory=SealKey.generate)
    seal: sts.Seal = field(default_factory=lambda: sts.Seal([secrets.token_bytes(sts.KEY_BYTES)]))
    authority: Path = Path()
    canaries: list[bytes] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    _sock: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=128))
    _task: Any = None
    _life: Life | None = None
    _tls: ssl.SSLContext | None = None
    _opened: threading.Condition = field(default_factory=threading.Condition)
    _records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sock.setblocking(False)
        issuer = Authority(self.folder, "gateway-ca")
        pair = issuer.issue("gateway", HOSTS)
        self.authority = issuer.ca_file
        self._tls, _ = server_context(pair.certificate_file, pair.key_file, None, ("http/1.1", "h2"))
        assert self.credential.secret is not None
        self.canaries += [self.credential.secret.reveal().encode(), *(each.token.encode() for each in (ANA, BOB, MIA))]

    # -- its life ---------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where it listens, with all of its hosts."""
        port: int = self._sock.getsockname()[1]
        return port

    @property
    def life(self) -> Life:
        """The gateway of now."""
        assert self._life is not None, "it does not run"
        return self._life

    @property
    def gate(self) -> Gate:
        """What serve() is given."""
        return self.life.gate

    def start(self) -> None:
        """Begin, on what an earlier one has left."""
        ready: asyncio.Future[None] = self.loop.call(_future())
        self._task = asyncio.run_coroutine_threadsafe(self._run(ready), self.loop.loop)
        self.loop.call(_first(ready, asyncio.wrap_future(self._task, loop=self.loop.loop)))

    def stop(self, *, killed: bool = False) -> None:
        """End it: sessions are drained and tapes sealed. killed: what waits for a human is left as it is."""
        life, self._life = self.life, None
        life.killed = killed
        self.loop.loop.call_soon_threadsafe(life.stop.set)
        self._task.result(WAIT_SECONDS)

    def restart(self, *, killed: bool = False) -> None:
        """End it and begin another on the same state. Users who connect meanwhile wait."""
        self.stop(killed=killed)
        self.start()

    async def _run(self, ready: asyncio.Future[None]) -> None:
        state = self.folder / "state"
        with contextlib.ExitStack() as stack:
            database = Database(state / "gatecast.db").open()
            stack.callback(database.close)
            jobs = JobStore(database)
            await jobs.start()
            approvals = Approvals(database, url="https://gw.example/approvals/{id}", on_event=self._noted)
            await approvals.start()
            recorder = SessionRecorder(state / "tapes", self.key, lambda: "rules-1", node="little")
            stack.callback(recorder.close)
            recorder.recover()
            recorder.start()
            connections = Connections(1000)
            gate = self._gate(jobs, approvals, recorder, connections)
            admin = AdminServer(self.folder / "admin.sock", self._admin(approvals, connections).methods())
            self._life = life = Life(database, recorder, approvals, admin, gate, connections, asyncio.Event())
            await admin.start()
            try:
                await self._serve(life, ready)
            finally:
                await admin.close()

    async def _serve(self, life: Life, ready: asyncio.Future[None]) -> None:
        async with asyncio.TaskGroup() as group:
            accepting = group.create_task(
                life.connections.accept(group, self._sock, LISTENER, _protocol(), lambda: life.gate)
            )
            life.connections.live_in(group)
            background = _protocol().background
            beside = None if background is None else group.create_task(_beside(background(life.gate)))
            ready.set_result(None)
            await life.stop.wait()
            accepting.cancel()
            await asyncio.wait([accepting])  # the loop lets go of the socket
            if beside is not None:
                beside.cancel()
            await life.connections.drain(0.0, asyncio.Event())
            if not life.killed:
                life.approvals.close()
        for _, pool in Links.of(life.gate.shared)._pools.values():  # in the product they end with the process
            await pool.close_all()

    def _gate(self, jobs: JobStore, approvals: Approvals, recorder: SessionRecorder, residents: Connections) -> Gate:
        async def policy(identity: Identity, target: Target, command: Command) -> Verdict:
            return await policy_of(self.rule)(identity, target, command)

        services: dict[str, Any] = {
            "targets": FakeTargets(self.target),
            "identities": self.people,
            "policy": policy,
            "credentials": FakeCredentials(self.credential),
            "approvals": approvals,
            "masker": Masking(b"k" * 32),
            "reader": words,
            "recorder": recorder,
            "settings": {
                "tls": self._tls,
                "listener": LISTENER,
                "bigquery": {"universe": UNIVERSE, "seal": self.seal},
                **self.settings,
            },
            "clock": time.time,
            "residents": residents,
            "jobs": jobs,
            "warehouse": self.loop.analysts,
            "rewriter": self.loop.analysts,
            "scans": WarehouseScans(),
        }
        return Gate(**{**services, **self.more})

    def _admin(self, approvals: Approvals, connections: Connections) -> Admin:
        async def reload() -> Mapping[str, Any]:
            return {}

        return Admin(approvals, self.people, connections, reload, lambda: {})

    # -- what waits for a human ---------------------------------------------------------------------------

    def _noted(self, record: Record) -> None:
        """Runs on the gateway's thread."""
        if record.state == "pending":
            with self._opened:
                self._records.append(record)
                self._opened.notify_all()

    def held(self, number: int = 0, about: str = "") -> Record:
        """The first approval from that number on whose text has this in it; waits until it is asked for."""

        def found() -> Record | None:
            return next((each for each in self._records[number:] if about in each.text), None)

        with self._opened:
            record = self._opened.wait_for(found, WAIT_SECONDS)
            assert record is not None, "nobody was asked"
            return record

    @property
    def asked(self) -> int:
        """How many approvals have been asked for."""
        with self._opened:
            return len(self._records)

    def decide(self, approval: str, approve: bool = True, reason: str = "", by: Person = MIA) -> None:
        """Approve or deny, as an approver does."""
        self.loop.call(self.life.approvals.decide(approval, by.identity, approve, reason))

    def decide_elsewhere(self, approval: str, approve: bool = True, reason: str = "", by: Person = MIA) -> None:
        """The same by another process, over the admin socket."""
        values = [str(self.folder / "admin.sock"), "approve" if approve else "deny", approval, reason, by.token]
        done = subprocess.run(
            [sys.executable, "-c", DECIDE, *values], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_SECONDS,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    # -- what it has done -----------------------------------------------------------------------------------

    def live(self) -> list[dict[str, Any]]:
        """The sessions of now."""
        return self.loop.call(_value(self.life.connections.live))

    def kill(self, session: str) -> bool:
        """End a session, as an administrator does."""
        return self.loop.call(_value(lambda: self.life.connections.kill(session, "local:root")))

    def end_of(self, who: Person) -> int:
        """Revoke somebody's login: sessions of it are ended, as app.end_invalid() does. Returns how many."""
        self.people.revoked.add(who.identity.subject)

        def over(one: Connection) -> bool:
            return one.identity is not None and not self.people.valid(one.identity)

        return self.loop.call(_value(lambda: self.life.connections.end_where(over, "the login was revoked")))

    def idle(self) -> None:
        """End the sessions in which no request runs, as time would, and wait until their tapes are sealed."""
        self.loop.call(_ended(self.gate))

    def tapes(self) -> list[TapeReader]:
        """All tapes, the oldest first; sealed where their session is over."""
        found = (self.folder / "state" / "tapes").rglob("*.000.gct")
        return [TapeReader(path) for path in sorted(found, key=lambda path: path.name)]

    def stories(self, who: Person | None = None) -> list[Story]:
        """What the tapes tell, after idle(); of one person alone, where one is named."""
        self.idle()
        subject = who.identity.subject if who is not None else None
        return [story(tape) for tape in self.tapes() if subject in (None, tape.header.map_["identity"]["subject"])]

    # -- users ------------------------------------------------------------------------------------------------

    @property
    def universe(self) -> dict[str, int]:
        """The hosts of the universe domain: for names()."""
        return {f"{host}:443": self.port for host in HOSTS if host.endswith(UNIVERSE)}

    def bearer(self, who: Person = ANA, target: str = TARGET) -> str:
        """An access token of the gateway's own, as its token endpoint gives one."""
        return self.seal.make(who.identity, target, time.time())[0].reveal()

    def access(self, door: Door, who: Person = ANA, proxy: str = "", *, plain: bool = False) -> Access:
        """How a client gets here. proxy: of names(gateway.universe). plain: by the user's own token, not a bearer()."""
        bearer = self.bearer(who)
        token = who.token if plain else bearer
        self.canaries.append(bearer.encode())
        storage = f"localhost:{self.port}"
        url = f"https://localhost:{self.port}/bq/{TARGET}"
        return Access(door, url, storage, token, self.authority, who.token, proxy, bearer)

    def ask(
        self,
        method: str,
        path: str,
        value: object = None,
        *,
        who: Person = ANA,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        prefix: str = f"/bq/{TARGET}/bigquery/v2",
    ) -> Answer:
        """One request without any client, on a connection of its own. value: bytes as they are, else as JSON."""
        context = ssl.create_default_context(cafile=str(self.authority))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=WAIT_SECONDS)
        body = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        named = {"Authorization": f"Bearer {who.token if token is None else token}"} if token != "" else {}
        if body is not None:
            named["Content-Type"] = "application/json"
        with contextlib.closing(connection):
            connection.request(method, prefix + path, body, {**named, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    # -- its end ------------------------------------------------------------------------------------------------

    def inspect(self) -> None:
        """After stop(): every tape verifies, no secret is on a tape or in the log, nothing has failed unforeseen."""
        failed = [line for line in self.logs if line.get("event") in NO_FAILURES]
        assert not failed, failed
        said = repr(self.logs).encode()
        assert not [canary for canary in self.canaries if canary in said], "a secret is in the log"
        if self.tapes():
            report = verify(self.folder / "state" / "tapes", self.key.public_keys())
            assert report.status == VERIFIED, report
        for tape in self.tapes():
            for record in tape.records():
                data = bytes(record.payload)
                assert not [canary for canary in self.canaries if canary in data], f"a secret is on {tape.path.name}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body or b"{}")

    @property
    def reason(self) -> str:
        """The reason of an error, as clients see it."""
        reason: str = self.json["error"]["errors"][0]["reason"]
        return reason

    @property
    def message(self) -> str:
        """What an error says."""
        message: str = self.json["error"]["message"]
        return message


def target_of(server: BigQueryServer, recording: Any = "written", **settings: object) -> Target:
    """The stand-in for the real service as a target; settings: see protocols/bigquery/dial_settings.py."""
    given = {"ca_file": str(server.authority.ca_file), "storage": f"localhost:{server.storage}", **settings}
    return Target(TARGET, "bigquery", host="localhost", port=server.port, settings=given, recording=recording)


@contextlib.contextmanager
def gateway(loop: Loop, folder: Path, target: Target, rule: Rule = allow_all, **more: Any) -> Iterator[Gateway]:
    """Run a gateway. folder: of its state, with a short path. more: fields of Gateway."""
    (folder / "state" / "tapes").mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "state").chmod(0o700)
    made = Gateway(loop, folder, target, rule, **more)
    with _logged(made.logs):
        try:
            made.start()
            yield made
        finally:
            if made._life is not None:
                made.stop()
            made._sock.close()
    made.inspect()


_sinks: Final[list[list[Any]]] = []


@contextlib.contextmanager
def _logged(lines: list[Any]) -> Iterator[None]:
    """Keep what is logged, as structlog's own capture_logs does; several gateways may run at a time."""
    processors: Any = structlog.get_config()["processors"]
    if not _sinks:
        processors.insert(0, _keep)
    _sinks.append(lines)
    try:
        yield
    finally:
        _sinks.remove(lines)
        if not _sinks:
            processors.remove(_keep)


def _keep(logger: object, method: str, event: Any) -> Any:
    for lines in _sinks:
        lines.append({**event, "log_level": method})
    raise structlog.DropEvent


def _protocol() -> protocols.Protocol:
    found = protocols.load().get("bigquery")
    if found is not None:
        return found
    from protocols.bigquery.serve import serve  # its PROTOCOL comes last

    async def serving(user: Stream, gate: Gate) -> None:
        await serve(user, gate)

    return protocols.Protocol("bigquery", frozenset(), 443, serving, ("h2", "http/1.1"))


async def _beside(work: Awaitable[None]) -> None:
    await work


async def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def _first(ready: asyncio.Future[None], running: asyncio.Future[None]) -> None:
    """Wait until it is ready; what keeps it from that is raised."""
    await asyncio.wait([ready, running], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
        raise AssertionError("it ended at once")


async def _value(read: Callable[[], T]) -> T:
    return read()


async def _ended(gate: Gate) -> None:
    """End quiet sessions; each is forgotten once its resident is over, which seals its tape."""
    sessions = sessions_of(gate.shared)
    waiting = [each for each in sessions._open.values() if not each.over.is_set()]
    for each in waiting:
        if each.quiet:
            each.end("idle")
    async with asyncio.timeout(WAIT_SECONDS):
        while any(each in sessions._open.values() for each in waiting if each.over.is_set()):
            await asyncio.sleep(0.01)  # a session tells nobody when it is gone
