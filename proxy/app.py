"""The composition root: configuration -> services -> one Gate a listener -> connections; one TaskGroup for all.

Start: read everything, take the state directory, bind every address, then accept. Reload (SIGHUP, or a file
changed): read everything again; good: swapped in at once, and running sessions meet the new rules at their next
command; bad: the old stays in force and the log says which line is wrong. Stop (SIGTERM, SIGINT): stop accepting,
let sessions go on for limits.drain_seconds (a second signal: no longer), end the rest, seal every tape.

What a reload cannot change (addresses, the state directory, the recorder) it names in the log. This is a gateway of
one process; proxy.workers makes one of several out of it, by what it puts in the place of the methods marked "Hook".
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog
import uvloop

import protocols
from protocols import Protocol
from proxy import __version__, sections
from proxy.admin.handlers import Admin
from proxy.admin.server import AdminServer, Handler
from proxy.admin.text import iso
from proxy.admission import Admission
from proxy.beside import Beside
from proxy.bigquery_files import KEY_NAME
from proxy.bigquery_files import door_of as bigquery_door_of
from proxy.certificates import ServerCertificate, server_context
from proxy.config import Loaded
from proxy.connections import Connection, Connections
from proxy.core.errors import ConfigError
from proxy.core.gate import Gate
from proxy.core.peers import Alone, Peers
from proxy.kube_sections import BIGQUERY
from proxy.logging import describe
from proxy.masking.warehouse_scan import WarehouseScans
from proxy.notify import notify, notify_reloading
from proxy.policy.shell import read_shell
from proxy.policy.sql import SqlReader
from proxy.services import SOCKET_NAME, Services, keep_fixed, open_services, secret_file
from proxy.sessions.upkeep import IndexUpkeep
from proxy.snapshot import read_snapshot
from proxy.sockets import listen, name_of
from proxy.ssh_doors import door_of
from proxy.ssh_sections import SSH
from proxy.watch import POLL_SECONDS, Watch

# The default 5 ms lets a busy thread starve the event loop for that long (recorder note, section 2: "Convoy trap").
SWITCH_INTERVAL_SECONDS: Final = 0.0005
CERTIFICATE_LOOK_SECONDS: Final = 86_400.0
# glibc gives blocks above 128 KiB back to the kernel when they are freed, and takes new, zeroed pages for the next: for
# buffers of a bulk transfer that is a tenth of all CPU. Below these limits it keeps what it has (mallopt(3)).
MALLOC_TRIM_THRESHOLD: Final = (-1, 32 * 1024 * 1024)
MALLOC_MMAP_THRESHOLD: Final = (-3, 4 * 1024 * 1024)
FAILED_LOGIN: Final = "failed-login"  # what the processes of a gateway tell each other: an address, without more

log = structlog.get_logger(__name__)


class NotEverywhere(ConfigError):
    """The new configuration is in force, but not yet in every process of the gateway."""


@dataclass(frozen=True, slots=True)
class Front:
    """One listener as configured now: what its next connection gets."""

    section: sections.Listener
    protocol: Protocol
    gate: Gate
    certificate: ServerCertificate | None


class Gateway:
    """A running gateway. Made by run(); reload() and stop() are for signals, the watch and the admin socket."""

    _warns = True  # of what a reload cannot change; workers leave that to their supervisor

    def __init__(self, services: Services, peers: Peers | None = None) -> None:
        self.services = services
        self.started = time.time()
        self.peers = peers if peers is not None else Alone()
        self.peers.answer(FAILED_LOGIN, self._failed_elsewhere)
        config = services.live.snapshot.loaded.config
        self.connections = Connections(config.limits.max_connections, on_end=self._ended, on_closed=self._closed)
        self.admission = Admission(services.identities)
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self.hangup = asyncio.Event()
        self._reload_lock = asyncio.Lock()
        self._sockets: dict[str, list[socket.socket]] = {}
        self._gate = Gate(
            targets=services.live,
            identities=self.admission,
            policy=services.live.policy,
            credentials=services.credentials,
            approvals=services.approvals,
            masker=services.live,
            reader=SqlReader(),
            shell=read_shell,
            recorder=services.recorder,
            settings={},
            residents=self.connections,
            jobs=services.jobs,
            warehouse=services.warehouse,
            rewriter=services.warehouse,
            scans=WarehouseScans(),
            clock=time.time,
            shared={"peers": self.peers},
        )
        self.fronts: dict[str, Front] = {}
        self._beside = Beside(lambda: [(front.protocol, front.gate) for front in self.fronts.values()])
        self._watch = Watch(lambda: services.live.snapshot.files)

    # -- life -----------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[Gateway], None] = lambda gateway: None) -> None:
        """Serve until stop(); ready is called when every address is bound. Raises ConfigError, StoreError."""
        services = self.services
        self.fronts = fronts_of(services.live.snapshot.loaded, services, self._gate)
        await services.identities.refresh()
        async with self._administered():
            with self._listening():
                try:
                    async with asyncio.TaskGroup() as group:
                        await self._serve(group, ready)
                finally:
                    await services.warehouse.close()
        log.info("stopped", connections=self.accepted)

    async def _serve(self, group: asyncio.TaskGroup, ready: Callable[[Gateway], None]) -> None:
        self.connections.live_in(group)
        background = [group.create_task(work) for work in self._background()]
        accepting = [group.create_task(work) for work in self._accepting(group)]
        if await self._prepared():
            self._announce()
            self._beside.begin()
            ready(self)
            await self.stopping.wait()
            self._farewell()
        for task in accepting:
            task.cancel()
        await asyncio.wait(accepting)  # the loop lets go of the sockets before they are closed
        await self._drain()
        self.services.approvals.close()
        for task in background:
            task.cancel()

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        """Hook: what runs beside the connections until the end."""
        return [
            self.services.identities.run(),
            self._beside.run(self.services.warehouse),
            self._watch_files(),
            self._watch_certificates(),
            self._reload_on_hangup(),
            *self._vaulting(),
            *self._indexing(),
        ]

    def _indexing(self) -> list[Coroutine[Any, Any, None]]:
        """What keeps the index of sessions up to date; one for all workers of a gateway."""
        section = self.services.live.snapshot.loaded.config.recorder
        return [IndexUpkeep(self.services.recorder.directory).run()] if section.index else []

    def _vaulting(self) -> list[Coroutine[Any, Any, None]]:
        """What brings finished tapes to the vault, and heads to witnesses; one for all workers of a gateway."""
        services = self.services
        work = [services.notary.run()] if services.notary is not None else []
        return [*work, services.vault.task.run()] if services.vault is not None else work

    def _accepting(self, group: asyncio.TaskGroup) -> list[Coroutine[Any, Any, None]]:
        """Hook: what brings connections until the gateway stops."""
        return [self._accept(group, name, sock) for name, sockets in self._sockets.items() for sock in sockets]

    async def _prepared(self) -> bool:
        """Hook: return once users can be served; False where it was stopped before."""
        return True

    def stop(self) -> None:
        """Stop accepting and drain; called again, end the sessions at once."""
        if self.stopping.is_set():
            self.hurry.set()
        self.stopping.set()

    async def _drain(self) -> None:
        seconds = self.services.live.snapshot.loaded.config.limits.drain_seconds
        self._close_sockets()
        if len(self.connections):
            log.info("draining", connections=len(self.connections), seconds=seconds)
        ended = await self.connections.drain(seconds, self.hurry)
        if ended:
            log.warning("sessions-ended", count=ended, reason="the gateway stops")

    @contextlib.asynccontextmanager
    async def _administered(self) -> AsyncIterator[None]:
        """Hook: answer administrators, after what earlier processes left waiting was ended."""
        await self.services.jobs.start()
        await self.services.approvals.start()
        admin = AdminServer(self.services.state / SOCKET_NAME, self.methods())
        await admin.start()
        try:
            yield
        finally:
            await admin.close()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Bind every address, or none."""
        try:
            for name, front in self.fronts.items():
                self._sockets[name] = listen(front.section.address)
            yield
        finally:
            self._close_sockets()
            for name in self._sockets:
                place = sections.parse_address(self.fronts[name].section.address)
                if isinstance(place, Path):
                    place.unlink(missing_ok=True)

    def _close_sockets(self) -> None:
        for sockets in self._sockets.values():
            for sock in sockets:
                sock.close()

    async def _accept(self, group: asyncio.TaskGroup, name: str, sock: socket.socket) -> None:
        protocol = self.fronts[name].protocol
        await self.connections.accept(group, sock, name, protocol, lambda: self.fronts[name].gate)

    # -- reload ---------------------------------------------------------------------------------------

    async def reload(self) -> str:
        """Read everything again and swap it in; return the rules' revision. Raises ConfigError, changes nothing."""
        async with self._reload_lock:
            services, old = self.services, self.services.live.snapshot
            new = await asyncio.to_thread(read_snapshot, old.loaded.path, services.hash_key)
            loaded = keep_fixed(old.loaded.config, new.loaded, warn=self._warns)
            fronts = await asyncio.to_thread(fronts_of, loaded, services, self._gate)
            services.configure(replace(new, loaded=loaded))
            self.fronts = fronts
            self.connections.limit = loaded.config.limits.max_connections
            self.end_invalid()
        log.info("reloaded", rules=new.rules.revision, before=old.rules.revision, targets=len(new.targets))
        return new.rules.revision

    async def reload_or_keep(self, why: str) -> bool:
        """Reload; a bad configuration is told to the log, line by line, and the old one stays."""
        notify_reloading()
        try:
            await self.reload()
        except ConfigError as error:
            for problem in str(error).splitlines():
                log.error("reload-failed", problem=problem, why=why)
            if not isinstance(error, NotEverywhere):
                log.error("old-configuration-kept", rules=self.services.live.snapshot.rules.revision)
            return False
        finally:
            notify("READY=1")
        return True

    def end_invalid(self) -> None:
        """End the sessions whose identity was revoked, locked or taken out of the configuration."""
        valid = self.services.identities.valid
        self.connections.end_where(
            lambda one: one.identity is not None and not valid(one.identity), "the login was revoked or has expired"
        )

    def _ended(self, connection: Connection) -> None:
        self.admission.ended(connection)
        if connection.unproved:
            self.peers.tell(FAILED_LOGIN, connection.peer.encode())

    async def _failed_elsewhere(self, payload: bytes) -> bool:
        self.services.identities.note_failure(payload.decode())
        return True

    def _closed(self) -> None:
        """Hook: a connection is over and forgotten."""

    async def _reload_on_hangup(self) -> None:
        while True:
            await self.hangup.wait()
            self.hangup.clear()
            await self.reload_or_keep("SIGHUP")

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                changed = await self._watch.changed()
                if changed:
                    await self.reload_or_keep(f"{', '.join(sorted(path.name for path in changed))} changed")
                self.end_invalid()
            except Exception as error:  # the old configuration stays in force: that is the closed way
                log.error("reload-failed", **describe(error))

    async def _watch_certificates(self) -> None:
        while True:
            for name, front in self.fronts.items():
                warning = front.certificate.warning(datetime.now(UTC)) if front.certificate else None
                if warning is not None:
                    log.warning("certificate", listener=name, warning=warning)
            await asyncio.sleep(CERTIFICATE_LOOK_SECONDS)

    # -- what it says of itself -----------------------------------------------------------------------

    def methods(self) -> dict[str, Handler]:
        """What the admin socket answers."""

        async def reload() -> Mapping[str, Any]:
            return {"rules": await self.reload()}

        def operator_groups() -> Mapping[str, frozenset[str]]:
            operators = self.services.live.snapshot.loaded.config.identity.operators
            return {user: frozenset(groups) for user, groups in operators.items()}

        services = self.services
        admin = Admin(services.approvals, services.identities, self.connections, reload, self.status, operator_groups)
        vault = services.vault.methods(admin.who) if services.vault is not None else {}
        return {**admin.methods(), **vault}

    @property
    def accepted(self) -> int:
        """How many connections there have been."""
        return self.connections.accepted

    def addresses(self) -> dict[str, list[str]]:
        """Where each listener listens."""
        return {
            name: [name_of(sock) for sock in sockets if sock.fileno() >= 0] for name, sockets in self._sockets.items()
        }

    def status(self) -> dict[str, object]:
        """The gateway as JSON values."""
        snapshot = self.services.live.snapshot
        return {
            "version": __version__,
            "pid": os.getpid(),
            "node": self.services.node,
            "started": iso(self.started),
            "config": str(snapshot.loaded.path),
            "listeners": self.addresses(),
            "targets": sorted(snapshot.targets),
            "rules": snapshot.rules.revision,
            "connections": len(self.connections),
            "connections_limit": self.connections.limit,
            "accepted": self.accepted,
            "refused": self.connections.refused,
        }

    def _announce(self) -> None:
        snapshot = self.services.live.snapshot
        for name, places in self.addresses().items():
            front = self.fronts[name]
            words: dict[str, object] = {"protocol": front.section.protocol, "address": ", ".join(places)}
            if front.certificate is not None:
                words |= {"certificate": front.certificate.subject, "fingerprint": front.certificate.fingerprint}
            if front.section.plain:
                words["plain"] = front.section.plain
            log.info("listening", listener=name, **words)
            if front.section.plain == "allow-remote":
                log.warning("plain-listener", listener=name, why="tokens and data cross the network in the clear")
        log.info("started", version=__version__, rules=snapshot.rules.revision, targets=sorted(snapshot.targets))
        notify("READY=1")

    def _farewell(self) -> None:
        notify("STOPPING=1")


def fronts_of(loaded: Loaded, services: Services, gate: Gate) -> dict[str, Front]:
    """Make the listeners' gates and TLS contexts. Raises ConfigError."""
    known = protocols.load()
    fronts = {}
    for index, section in enumerate(loaded.config.listeners):
        protocol = known[section.protocol]
        context, certificate = None, None
        if section.tls is not None:
            ca = loaded.resolve(section.tls.client_ca) if section.tls.client_ca else None
            try:
                cert, key = loaded.resolve(section.tls.cert), loaded.resolve(section.tls.key)
                context, certificate = server_context(cert, key, ca, protocol.alpn)
            except ConfigError as error:
                raise ConfigError(loaded.document.error(("listeners", index, "tls"), str(error))) from error
        try:
            settings = _settings(loaded, services, section, context, certificate)
        except ConfigError as error:
            raise ConfigError(loaded.document.error(("listeners", index, section.protocol), str(error))) from error
        fronts[section.name] = Front(section, protocol, replace(gate, settings=settings), certificate)
    return fronts


def _settings(
    loaded: Loaded,
    services: Services,
    section: sections.Listener,
    context: ssl.SSLContext | None,
    certificate: ServerCertificate | None,
) -> Mapping[str, Any]:
    """What a protocol may know of its listener; each protocol's serve.py names what it reads. Raises ConfigError."""
    limits, issuers = loaded.config.limits, loaded.config.identity.oidc
    unix = isinstance(sections.parse_address(section.address), Path)
    key = secret_file(services.state / KEY_NAME) if section.protocol == BIGQUERY else None
    return MappingProxyType({
        "listener": section.name,
        "node": services.node,
        "tls": context,
        "certificate": certificate.der if certificate is not None else None,
        "plain_allowed": bool(section.plain) or unix,
        "login": section.login,
        "scram_mock_key": services.scram_mock_key,
        "oauth": {"issuer": issuers[0].issuer, "scope": issuers[0].scope} if issuers else None,
        "login_seconds": limits.login_seconds,
        "idle_seconds": limits.idle_seconds,
        "query_limit": limits.query_bytes,
        **({"ssh": door_of(loaded, section)} if section.protocol == SSH else {}),
        **({"bigquery": bigquery_door_of(section, key)} if key is not None else {}),
    })  # fmt: skip


def run(path: Path, ready: Callable[[Gateway], None] = lambda gateway: None) -> None:
    """Run a gateway until a signal stops it: in this process, or in several. Raises ConfigError, StoreError."""
    prepare_process()
    with open_services(path) as services, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(services, ready))


async def _run(services: Services, ready: Callable[[Gateway], None]) -> None:
    gateway = _gateway(services)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop)
    loop.add_signal_handler(signal.SIGHUP, gateway.hangup.set)
    settle_memory()
    await gateway.run(ready)


def _gateway(services: Services) -> Gateway:
    if worker_count(services.live.snapshot.loaded.config) == 1:
        return Gateway(services)
    from proxy.workers.supervisor import Supervisor  # it is a Gateway, so it imports this module

    return Supervisor(services)


def worker_count(config: sections.Config) -> int:
    """How many processes serve users."""
    if config.workers == "auto":
        return min(len(os.sched_getaffinity(0)), sections.WORKERS_LIMIT)
    return config.workers


def settle_memory() -> None:
    """What the start made lives as long as the process: no collection looks at it again."""
    gc.collect()
    gc.freeze()


def prepare_process() -> None:
    """Limits of the process: as many descriptors as we may have, and no core file with secrets in it."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    with contextlib.suppress(OSError, AttributeError):  # another C library has other ways
        libc = ctypes.CDLL(None)
        for number, value in (MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD):
            libc.mallopt(number, value)
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
