"""Fakes of the Gate's services: small, in memory, and held to the same conformance suite as the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgpack

from proxy.core.errors import LoginRefused, TapeError
from proxy.core.events import CellMask, Column, Command, FieldMask, RemarkFields
from proxy.core.gate import Decision, Gate, Outcome, Plan, StreamMask
from proxy.core.parties import Credential, Identity, KeyLogin, Secret, Target
from proxy.core.statement import Statement
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from recorder.tape import Kind, Recorder, Tape

SECRET = "canary-credential-3f1c"
TOKEN = "canary-token-77aa"


@dataclass
class FakeTape(Tape):
    """A tape in a list: (channel, kind, payload); journal notes when it was written and committed."""

    sid: str = "01FAKESESSION0000000000000"
    records: list[tuple[int, Kind, bytes]] = field(default_factory=list)
    places: list[int | None] = field(default_factory=list)  # the flow of each record
    journal: list[tuple[str, int]] = field(default_factory=list)
    fail: bool = False
    closed: tuple[str, str] | None = None

    def append(
        self,
        channel: int,
        kind: Kind,
        payload: bytes,
        entry: Mapping[str, Any] | None = None,
        flow: int | None = None,
    ) -> int:
        if self.fail or self.closed:
            raise TapeError("the fake tape fails")
        self.records.append((channel, kind, payload))
        self.places.append(flow)
        return len(self.records) - 1

    async def written(self) -> None:
        if self.fail:
            raise TapeError("the fake tape fails")
        self.journal.append(("written", len(self.records)))

    async def commit(self) -> None:
        if self.fail:
            raise TapeError("the fake tape fails")
        self.journal.append(("commit", len(self.records)))

    async def close(self, status: Literal["closed", "failed"], reason: str = "") -> None:
        self.closed = (status, reason)

    def of(self, kind: Kind) -> list[Any]:
        """The payloads of one kind, decoded."""
        found = [payload for _, each, payload in self.records if each == kind]
        return found if kind == Kind.WIRE else [msgpack.unpackb(payload) for payload in found]

    def stream(self, channel: int, flow: int | None) -> bytes:
        """All raw bytes of one channel and flow; None: those of no flow."""
        records = zip(self.records, self.places, strict=True)
        return b"".join(
            payload for (each, kind, payload), of in records if kind == Kind.WIRE and (each, of) == (channel, flow)
        )

    def wire(self, channel: int) -> bytes:
        """All raw bytes of one channel."""
        return b"".join(payload for each, kind, payload in self.records if kind == Kind.WIRE and each == channel)


class FakeRecorder(Recorder):
    """Opens FakeTapes."""

    def __init__(self) -> None:
        self.tapes: list[FakeTape] = []
        self.fail = False

    def open(self, **more: Any) -> FakeTape:
        if self.fail:
            raise TapeError("no room")
        tape = FakeTape(sid=f"01FAKE{len(self.tapes):020d}")
        self.tapes.append(tape)
        return tape


class FakePending:
    """A held command; decide() wakes it."""

    def __init__(self, hold: Hold, name: str) -> None:
        self.id = name
        self.url = ""
        self.hold = hold
        self._decision: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Decision:
        return await self._decision

    def withdraw(self) -> None:
        self.decide("withdrawn")

    def decide(self, outcome: Outcome, by: str = "", reason: str = "") -> None:
        if not self._decision.done():
            self._decision.set_result(Decision(outcome, by, reason))


class FakeApprovals:
    """Keeps what is held; answer decides at once where it is set."""

    def __init__(self) -> None:
        self.pending: list[FakePending] = []
        self.asked: list[Command] = []
        self.answer: Decision | None = None
        self.opened = asyncio.Event()

    async def open(self, session: str, identity: Identity, target: Target, command: Command, hold: Hold) -> FakePending:
        pending = FakePending(hold, f"ap_{len(self.pending)}")
        self.pending.append(pending)
        self.asked.append(command)
        if self.answer is not None:
            pending.decide(self.answer.outcome, self.answer.by, self.answer.reason)
        self.opened.set()
        return pending


SSH_PERMITS = frozenset(
    {"permit-pty", "permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding", "permit-user-rc"}
)


class FakeIdentities:
    """One user, whose token is TOKEN."""

    def __init__(self) -> None:
        self.identity = Identity("ana@acme.com", frozenset({"agents"}), ("claude",), proof="0" * 64)
        self.revoked = False
        self.verifiers: dict[str, str] = {}
        self.keys: set[bytes] = set()  # blobs of SSH keys that are this user's
        self.proved: KeyLogin | None = None

    async def password(self, user: str, secret: str) -> Identity:
        if secret != TOKEN:
            raise LoginRefused("the token was not accepted")
        return self.identity

    def scram_verifier(self, user: str) -> str | None:
        return self.verifiers.get(user)

    async def local(self, user: str) -> Identity:
        return replace(self.identity, subject=user)

    async def ssh_key(self, login: str, key: bytes) -> KeyLogin:
        if key not in self.keys:
            raise LoginRefused("the key is not known")
        return KeyLogin(self.identity, "key", permits=SSH_PERMITS)

    def ssh_proved(self, login: KeyLogin) -> None:
        self.proved = login

    def valid(self, identity: Identity) -> bool:
        return not self.revoked


class FakeCredentials:
    """One credential for all targets."""

    def __init__(self, credential: Credential) -> None:
        self.credential = credential

    async def get(self, identity: Identity, target: Target) -> Credential:
        return self.credential


class FakeTargets:
    """Targets in a dict."""

    def __init__(self, *targets: Target) -> None:
        self.targets = {target.name: target for target in targets}

    def find(self, name: str) -> Target | None:
        return self.targets.get(name)


@dataclass(frozen=True)
class FakePlan:
    cells: Sequence[CellMask | None]
    rules: Mapping[int, str]
    scanned: frozenset[int] = frozenset()


class FakeMasker:
    """Masks every column whose name is in names with MASKED; remarks become '?'."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.denies: Deny | None = None
        self.word = b""  # what is replaced in streams

    def plan(self, masks: tuple[Mask, ...], command: Command, columns: tuple[Column, ...]) -> Plan | None:
        cells = [b"MASKED" if column.name in self.names else None for column in columns]
        if not any(cells):
            return None
        return FakePlan(cells, {i: masks[0].rule for i, cell in enumerate(cells) if cell})

    def remark(self, masks: tuple[Mask, ...], fields: RemarkFields) -> RemarkFields:
        free = ("message", "detail", "hint", "where", "payload", "value")
        return {role: "?" if role in free and value else value for role, value in fields.items()}

    def guard(self, masks: tuple[Mask, ...], command: Command) -> Deny | None:
        return self.denies

    def fields(self, masks: tuple[Mask, ...], command: Command) -> FieldMask | None:
        return FakeFields(self.word.decode()) if masks and self.word else None

    def stream(self, masks: tuple[Mask, ...]) -> StreamMask | None:
        return FakeStreamMask(self.word) if masks and self.word else None


class FakeFields:
    """Replaces one word by as many stars, in any value of a document."""

    resources: tuple[str, ...] = ()

    def __init__(self, word: str) -> None:
        self._word = word

    @property
    def texts(self) -> Callable[[str, str], str]:
        return lambda key, text: text.replace(self._word, "*" * len(self._word))

    def __call__(self, field: str) -> None:
        return None

    def touches(self, field: str) -> bool:
        return False


class FakeStreamMask:
    """Replaces one word by as many stars, also where it comes in pieces."""

    def __init__(self, word: bytes) -> None:
        self._word = word
        self._held = b""

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        text = (self._held + data).replace(self._word, b"*" * len(self._word))
        keep = next((n for n in range(len(self._word) - 1, 0, -1) if text.endswith(self._word[:n])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> bytes:
        held, self._held = self._held, b""
        return held


Rule = Callable[[Command], Verdict]


def policy_of(rule: Rule) -> Callable[[Identity, Target, Command], Awaitable[Verdict]]:
    """A Policy that looks at the command alone; parts are decided one by one."""

    async def decide(identity: Identity, target: Target, command: Command) -> Verdict:
        return rule(command)

    return decide


def allow_all(command: Command) -> Verdict:
    """The policy of those who trust."""
    return Allow("everything")


def words(text: str) -> tuple[Statement, ...]:
    """A reader for tests that need no parser: the first word is the verb; statements are split at semicolons."""
    found = []
    for part in text.split(";"):
        stripped = part.strip()
        if stripped:
            verb = stripped.split()[0].upper()
            kind = {"SELECT": "read", "INSERT": "write", "DELETE": "delete", "BEGIN": "session"}.get(verb, "unknown")
            found.append(Statement(verb, kind, stripped))  # type: ignore[arg-type]
    return tuple(found)


def fake_gate(rule: Rule = allow_all, *targets: Target, **more: Any) -> Gate:
    """A Gate of fakes; more replaces services by name."""
    services: dict[str, Any] = {
        "targets": FakeTargets(*targets),
        "identities": FakeIdentities(),
        "policy": policy_of(rule),
        "credentials": FakeCredentials(Credential("gate", Secret(SECRET))),
        "approvals": FakeApprovals(),
        "masker": FakeMasker(),
        "reader": words,
        "recorder": FakeRecorder(),
        "settings": {"plain_allowed": True},
        "clock": lambda: 1_800_000_000.0,
    }
    return Gate(**{**services, **more})
