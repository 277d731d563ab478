"""The Gate: the few services that a protocol may use. Each is a typing.Protocol; app.py puts the real ones in.

A fake of any of them passes the conformance suite too. Everything here may be called from one event loop
only. Methods that are not async never block for longer than a memory look-up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from proxy.core.events import CellMask, Column, Command, FieldMask, RemarkFields
from proxy.core.jobs import Jobs
from proxy.core.parties import Credential, Identity, KeyLogin, Target
from proxy.core.residents import Nowhere, Residents
from proxy.core.script import Script
from proxy.core.statement import Statement
from proxy.core.verdict import Deny, Hold, Mask, Verdict
from proxy.core.warehouse import Analysis, Replacement, Rewritten, TableField
from recorder.tape import Recorder

Policy = Callable[[Identity, Target, Command], Awaitable[Verdict]]
Outcome = Literal["approved", "denied", "expired", "withdrawn"]


@dataclass(frozen=True, slots=True)
class Decision:
    """How a held command ended. by is the approver's subject, '' where nobody decided."""

    outcome: Outcome
    by: str = ""
    reason: str = ""


class Pending(Protocol):
    """A held command that waits for a human."""

    @property
    def id(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def hold(self) -> Hold: ...

    async def wait(self) -> Decision:
        """Return once it is decided, expired (its own timeout) or withdrawn. Cancelling wait() withdraws."""

    def withdraw(self) -> None:
        """Take the request back: its user cancelled or left. Does nothing once it is decided."""


class Approvals(Protocol):
    """Opens approvals and persists them; any one of the hold's approvers may decide, never the requester."""

    async def open(self, session: str, identity: Identity, target: Target, command: Command, hold: Hold) -> Pending: ...


class Identities(Protocol):
    """Proof -> Identity."""

    async def password(self, user: str, secret: str) -> Identity:
        """Check a token or JWT that came as a password. Raises LoginRefused; never tells which part was wrong."""

    def scram_verifier(self, user: str) -> str | None:
        """Return PostgreSQL's SCRAM-SHA-256$... verifier of a locally defined user, None if there is none."""

    async def local(self, user: str) -> Identity:
        """The identity of a locally defined user whose SCRAM proof was verified."""

    async def ssh_key(self, login: str, key: bytes) -> KeyLogin:
        """Tell whom an SSH public key or user certificate (its blob, RFC 4253 6.6) stands for, at a login name.

        It proves nothing yet: the caller checks a signature by that key, then calls ssh_proved. Raises LoginRefused.
        """

    def ssh_proved(self, login: KeyLogin) -> None:
        """A signature by the key was checked: the connection is this identity's."""

    def valid(self, identity: Identity) -> bool:
        """Tell whether the identity still holds: neither expired nor revoked. Called before every command."""


class Credentials(Protocol):
    """(Identity, Target) -> Credential. Raises TargetPeerError with a text that names no secret."""

    async def get(self, identity: Identity, target: Target) -> Credential: ...


class Targets(Protocol):
    """The configured targets, as of the last good load."""

    def find(self, name: str) -> Target | None: ...


class Plan(Protocol):
    """The masks of one result: one entry a column, None = leave alone. rules: name of the rule per masked column.

    scanned: those of them that only detectors look at, so that a cell without a match stays as it is.
    """

    @property
    def cells(self) -> Sequence[CellMask | None]: ...
    @property
    def rules(self) -> Mapping[int, str]: ...
    @property
    def scanned(self) -> Collection[int]: ...


class Masker(Protocol):
    """Turns the masks of a permit into functions on cells and remarks. All of it is pure."""

    def plan(self, masks: tuple[Mask, ...], command: Command, columns: tuple[Column, ...]) -> Plan | None:
        """Choose a cell mask for each column; None if all columns stay as they are."""

    def remark(self, masks: tuple[Mask, ...], fields: RemarkFields) -> RemarkFields:
        """Mask the free-text fields of an error, notice or notification."""

    def guard(self, masks: tuple[Mask, ...], command: Command) -> Deny | None:
        """Refuse what would carry masked values past the masks (CREATE TABLE AS, INSERT .. SELECT, ...)."""

    def fields(self, masks: tuple[Mask, ...], command: Command) -> FieldMask | None:
        """Return what masks the fields of a document, None if all documents stay as they are."""

    def stream(self, masks: tuple[Mask, ...]) -> StreamMask | None:
        """Return a mask for a stream of text (a terminal, a program's output), None if no detector asks for it."""


class StreamMask(Protocol):
    """The detectors of some masks over one stream; see proxy/masking/streams.py."""

    @property
    def held_bytes(self) -> int: ...

    def feed(self, data: bytes) -> bytes:
        """Take a piece; return what can be let go by now, masked."""

    def flush(self) -> bytes:
        """Return all that is held back, masked as if the text ended here."""


# Reads SQL into statements, () for an empty text; never raises: what it cannot read is one 'UNPARSABLE' statement.
Reader = Callable[[str], Sequence[Statement]]


class WarehouseReader(Protocol):
    """Reads a warehouse's SQL (BigQuery's), in processes of its own."""

    async def read(self, text: str, project: str, dataset: str | None) -> Analysis:
        """Read a text; names in it are completed by project and "project.dataset" (None: there is no default).

        Never raises: what cannot be read, or not in time, is an opaque Analysis.
        """


class WarehouseRewriter(Protocol):
    """Rewrites a warehouse's SQL, in the same processes."""

    async def rewrite(
        self, text: str, project: str, dataset: str | None, scans: Mapping[str, tuple[Replacement, ...]]
    ) -> Rewritten:
        """Replace the scans of some tables ("project.dataset.table") in a text.

        Never raises: what cannot be rewritten, or not in time, is left as it is.
        """


class ScanMasks(Protocol):
    """The masks of a warehouse's columns as SQL, to stand where a table is scanned. All of it is pure."""

    def covers(self, masks: tuple[Mask, ...], table: str) -> bool:
        """Tell whether any column pattern may cover something of a table ("project.dataset.table")."""

    def replacements(
        self, masks: tuple[Mask, ...], table: str, fields: Sequence[TableField]
    ) -> tuple[Replacement, ...] | None:
        """Return what each column of a table is to be shown as; None where that changes nothing."""


# Reads a command line of a POSIX shell; never raises: what it cannot read is opaque.
ShellReader = Callable[[str], Script]


def unread(text: str) -> Script:
    """The ShellReader of a gate that has none: nothing is known of any line."""
    return Script(opaque=bool(text.strip()), why="nothing reads command lines here")


@dataclass(frozen=True, slots=True)
class Gate:
    """What serve() is given. clock is seconds since the epoch.

    settings are the listener's. shared is for what a protocol keeps between connections (catalogues, cancel
    keys), by keys of its own; the same mapping in every Gate of a process.
    """

    targets: Targets
    identities: Identities
    policy: Policy
    credentials: Credentials
    approvals: Approvals
    masker: Masker
    reader: Reader
    recorder: Recorder
    settings: Mapping[str, Any]
    clock: Callable[[], float]
    shell: ShellReader = unread
    residents: Residents = field(default_factory=Nowhere)
    jobs: Jobs | None = None
    warehouse: WarehouseReader | None = None
    rewriter: WarehouseRewriter | None = None
    scans: ScanMasks | None = None
    shared: dict[str, Any] = field(default_factory=dict)
