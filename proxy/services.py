"""The gateway's services on one state directory: database, identities, approvals, credentials, recorder, keys.

open_services() takes the directory for this process alone (a lock that ends with the process), makes what is
missing in it (mode 0700; keys 0600) and hands all of it over as one value. Nothing listens yet. A worker process of
a gateway (proxy.workers) opens the same directory under the lock of its supervisor, which has made everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

import protocols
from proxy import __version__
from proxy.approvals import Approvals
from proxy.bigquery_files import Warehouse
from proxy.bigquery_files import credential_of as bigquery_credential_of
from proxy.config import Loaded, load_config
from proxy.connections import SessionRecorder
from proxy.core.errors import ConfigError
from proxy.credentials.gcp import GcpSource
from proxy.credentials.static import StaticCredential, StaticCredentials
from proxy.identity.service import Service
from proxy.identity.tokens import Tokens
from proxy.kube_files import SERVICE_ACCOUNT
from proxy.kube_sections import BIGQUERY, KUBERNETES
from proxy.notary import Notary
from proxy.sections import Config
from proxy.sections import Target as TargetSection
from proxy.snapshot import Live, Snapshot, read_snapshot
from proxy.ssh_doors import trust_of
from proxy.store.database import Database
from proxy.store.jobs import JobStore
from proxy.vault.service import VaultService
from recorder.errors import KeyFileError, TapeError
from recorder.ledger import NodeLedger
from recorder.nodelog import NodeLog, NodeLogError, log_directory
from recorder.seal import SealKey

EVIDENCE_AT_RISK: Final = frozenset({"tape-sync-failed", "tape-needs-recovery", "tape-removed", "tape-contradicts-log"})
ORIGIN: Final = "gatecast"  # of the nodes' logs: gatecast/<node>
DAY_SECONDS: Final = 86_400
DATABASE_NAME: Final = "gatecast.db"
SOCKET_NAME: Final = "admin.sock"
LOCK_NAME: Final = "serve.lock"
SCRAM_KEY_NAME: Final = "scram.key"
KEY_BYTES: Final = 32  # HMAC-SHA-256: a key as long as its output (RFC 2104 section 3)

# File systems on which "durable" means less than it says, and why. Names as in /proc/self/mountinfo.
WEAK_FILE_SYSTEMS: Final[Mapping[str, str]] = {
    "tmpfs": "it is memory: tapes do not survive a restart of the machine",
    "ramfs": "it is memory: tapes do not survive a restart of the machine",
    "nfs": "a write error may show only after the command has left",
    "nfs4": "a write error may show only after the command has left",
    "cifs": "a write error may show only after the command has left",
    "9p": "a sync may not reach the disk of the host",
    "virtiofs": "a sync may not reach the disk of the host",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """What the gateway is made of, apart from its sockets. live.snapshot is the configuration of this moment."""

    state: Path
    live: Live
    database: Database
    tokens: Tokens
    identities: Service
    approvals: Approvals
    credentials: StaticCredentials
    recorder: SessionRecorder
    jobs: JobStore
    warehouse: Warehouse
    node: str
    hash_key: bytes
    scram_mock_key: bytes
    notary: Notary | None = None  # None in a worker
    vault: VaultService | None = None  # None in a worker, and where the configuration has none
    lock: int | None = None  # the descriptor that holds the state directory; None in a worker

    def configure(self, snapshot: Snapshot) -> None:
        """Take a new snapshot; the caller has checked that it is a good one. Raises ConfigError, changes nothing."""
        self.identities.configure(snapshot.issuers, snapshot.users, trust_of(snapshot))
        self.credentials.configure(credentials_of(snapshot))
        approvals = snapshot.loaded.config.approvals
        self.approvals.configure(approvals.url, approvals.timeout)
        self.live.snapshot = snapshot


@contextlib.contextmanager
def open_services(path: Path, begun: Config | None = None) -> Iterator[Services]:
    """Read the configuration and open everything. Raises ConfigError, StoreError.

    begun: for a worker, the configuration that its supervisor started with: what only a restart changes is as there.
    """
    loaded = load_config(path, frozenset(protocols.load()))
    if begun is not None:
        loaded = keep_fixed(begun, loaded)
    state = prepare_state(loaded.state)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(lock_state(state)) if begun is None else None
        hash_key = secret_file(state / loaded.config.masking.hash_key_file)
        snapshot = read_snapshot(path, hash_key)
        if begun is not None:
            snapshot = replace(snapshot, loaded=keep_fixed(begun, snapshot.loaded))
        live = Live(snapshot)
        database = Database(state / DATABASE_NAME).open()
        stack.callback(database.close)
        tokens = Tokens(database, max_seconds=loaded.config.identity.tokens.max_days * DAY_SECONDS)
        node_log = node_log_of(live.snapshot.loaded)
        recorder = _recorder(state, live, node_log, first=begun is None)
        stack.callback(recorder.close)
        notary = Notary(node_log, live.snapshot.loaded) if begun is None else None
        vault = _vault(recorder, live, node_log) if begun is None else None
        if vault is not None:
            stack.callback(vault.close)
        approvals = loaded.config.approvals
        yield Services(
            state=state,
            live=live,
            database=database,
            tokens=tokens,
            identities=Service(database, tokens, snapshot.issuers, snapshot.users, trust=trust_of(snapshot)),
            approvals=Approvals(database, url=approvals.url, default_timeout_seconds=approvals.timeout),
            credentials=StaticCredentials(credentials_of(snapshot)),
            recorder=recorder,
            jobs=JobStore(database),
            warehouse=Warehouse(lambda: live.snapshot.targets),
            node=recorder.node,
            hash_key=hash_key,
            scram_mock_key=secret_file(state / SCRAM_KEY_NAME),
            notary=notary,
            vault=vault,
            lock=lock,
        )


def keep_fixed(was: Config, new: Loaded, *, warn: bool = False) -> Loaded:
    """Return the new configuration with the parts of the old that only a restart changes; warn: say so in the log."""
    now = new.config
    fixed: dict[str, object] = {}
    for key in ("node", "state", "recorder", "workers"):
        if getattr(was, key) != getattr(now, key):
            fixed[key] = getattr(was, key)
    if _store(was) != _store(now):
        fixed["vault"] = was.vault
    if was.masking.hash_key_file != now.masking.hash_key_file:
        fixed["masking"] = now.masking.model_copy(update={"hash_key_file": was.masking.hash_key_file})
    if was.identity.tokens != now.identity.tokens:
        fixed["identity"] = now.identity.model_copy(update={"tokens": was.identity.tokens})
    places = [(one.name, one.protocol, one.address) for one in was.listeners]
    if places != [(one.name, one.protocol, one.address) for one in now.listeners]:
        fixed["listeners"] = was.listeners
    if warn:
        for key in fixed:
            log.warning("restart-needed", key=key, line=new.document.line((key,)))
    return replace(new, config=now.model_copy(update=fixed)) if fixed else new


def _store(config: Config) -> tuple[object, ...] | None:
    """What of the vault only a restart changes: terms and pace may change at any time."""
    vault = config.vault
    return None if vault is None else (vault.url, vault.keys_url, vault.options, vault.read_back)


def credentials_of(snapshot: Snapshot) -> dict[str, StaticCredential]:
    """Where each target's credential is."""
    loaded = snapshot.loaded
    found = {}
    for target in loaded.config.targets:
        if target.protocol == KUBERNETES:
            found[target.name] = _of_requests(loaded, target)
            continue
        if target.protocol == BIGQUERY:
            found[target.name] = bigquery_credential_of(loaded, target)
            continue
        source = target.credential
        found[target.name] = StaticCredential(
            user=source.user,
            password_env=source.password_env,
            password_file=_place(loaded, source.password_file),
            certificate_file=_place(loaded, target.sslcert or source.certificate_file),
            key_file=_place(loaded, target.sslkey or source.key_file),
            passphrase_env=source.passphrase_env,
            passphrase_file=_place(loaded, source.passphrase_file),
        )
    return found


def _of_requests(loaded: Loaded, target: TargetSection) -> StaticCredential:
    source = target.credential
    token_file = SERVICE_ACCOUNT / "token" if source.in_cluster else _place(loaded, source.token_file)
    return StaticCredential(
        user="",
        per_request=True,
        token_env=source.token_env,
        token_file=token_file,
        foreign_file=source.in_cluster,
        certificate_file=_place(loaded, source.certificate_file),
        key_file=_place(loaded, source.key_file),
        kubeconfig=_place(loaded, source.kubeconfig),
        context=source.context,
        gcp=None if source.gcp is None else GcpSource(_place(loaded, source.gcp.key_file)),
    )


def _place(loaded: Loaded, path: Path | None) -> Path | None:
    return None if path is None else loaded.resolve(path)


def prepare_state(state: Path) -> Path:
    """Make the state directory, for its owner alone. Raises ConfigError."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = state.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{state}: the state directory cannot be made: {error.strerror}") from error
    if mode & 0o022:
        raise ConfigError(f"{state}: others may write to the state directory; chmod 700 it")
    return state


def secret_file(path: Path) -> bytes:
    """Read a key of KEY_BYTES, or make it (mode 0600). Raises ConfigError."""
    try:
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read the key; chmod 600 it")
        with path.open("rb") as file:
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read or made: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path}: should hold {KEY_BYTES} random bytes; move it away and a new one is made")
    return key


def file_system(path: Path) -> str:
    """The kind of file system that holds a path, as Linux calls it; '' where that cannot be told."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    best, kind = "", ""
    real = path.resolve()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        place = before.split(" ")[4].encode().decode("unicode_escape")  # blanks are written \040 (proc(5))
        if real.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, after.split(" ")[0]
    return kind


def next_key_path(key_file: Path) -> Path:
    """Where a rotation makes the next key; while it is there, no gateway starts (rotation.py)."""
    return key_file.with_name(key_file.name + ".next")


def node_log_of(loaded: Loaded, *, rotating: bool = False) -> NodeLog:
    """The log of this node, which all of its processes append to. Raises ConfigError."""
    config = loaded.config
    directory = loaded.state / config.recorder.directory
    node = config.node.name or socket.gethostname()
    if not rotating and next_key_path(loaded.state / config.recorder.key_file).exists():
        raise ConfigError("a rotation of the seal key was interrupted; type gatecast keys rotate-seal again")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = SealKey.load(loaded.state / config.recorder.key_file)
        return NodeLog(log_directory(directory, node), key, f"{ORIGIN}/{node}")
    except OSError as error:
        raise ConfigError(f"{directory}: the directory of tapes cannot be made: {error.strerror}") from error
    except KeyFileError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"node.name: {node}: {error}") from error


def _recorder(state: Path, live: Live, node_log: NodeLog, first: bool) -> SessionRecorder:
    """Open the recorder, after recovering what an earlier gateway left. Raises ConfigError.

    first: the first process of the gateway, when no other records.
    """
    config = live.snapshot.loaded.config
    directory = state / config.recorder.directory
    weak = WEAK_FILE_SYSTEMS.get(file_system(directory))
    if weak is not None and first:
        log.warning("tapes-not-durable", directory=str(directory), file_system=file_system(directory), why=weak)
    boot = secrets.token_hex(8)
    recorder = SessionRecorder(
        directory,
        SealKey.load(state / config.recorder.key_file),
        lambda: live.snapshot.rules.revision,
        node=node_log.directory.name,
        boot=boot,
        segment_limit=config.recorder.segment,
        reserve_bytes=config.recorder.reserve,
        ledger=NodeLedger(node_log, boot, __version__),
        on_event=_tell,
    )
    try:
        if first:
            recorder.recover()
            with contextlib.suppress(NodeLogError):  # a damaged log stops nobody here: the recorder's thread says so
                node_log.checkpoint()  # begun before anyone connects: a log without a head looks like one that was cut
        recorder.start()
    except TapeError as error:
        raise ConfigError(f"{directory}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{node_log.directory}: the node's log cannot be begun: {error.strerror}") from error
    return recorder


def _tell(event: str, words: Mapping[str, Any]) -> None:
    """What the recorder has to say to an operator."""
    (log.error if event in EVIDENCE_AT_RISK else log.warning)(event, **words)


def _vault(recorder: SessionRecorder, live: Live, node_log: NodeLog) -> VaultService | None:
    if live.snapshot.loaded.config.vault is None:
        return None
    return VaultService(recorder.directory, lambda: live.snapshot.loaded, node_log)


@contextlib.contextmanager
def lock_state(state: Path) -> Iterator[int]:
    """Hold the state directory for this process; the kernel lets go of it however the process ends.

    Yields the descriptor: workers inherit it, so that it is held until the last process of the gateway is gone.
    """
    path = state / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"{state}: another gatecast (process {owner}) serves this state directory; stop it first"
            ) from error
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)
