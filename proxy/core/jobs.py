"""Who owns what was made at a target whose ids outlive connections (BigQuery's jobs, sessions, uploads, result tables).

All users of a target share one account there, so the target itself would show everyone's things to everyone. The gate
keeps, for each id that an answer has named, an Entry: whose it is, under which permit it was made, what is known of
its columns, and where a held job stands. Whoever is not its owner gets what an unknown id gets.

An owner is a person with the agents that act for them, whatever token proved it: a job outlives an access token. The
life of a job is the table NEXT; the store moves an entry only along it, so that of two processes that end the same
hold one wins. proxy/store/jobs.py is the service; this file is values alone.

Left out: sharing of a job between identities (a rule for that would be a rule about tables, not ids).
Source: BigQuery note 6 and 7.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from proxy.core.parties import Identity
from proxy.core.verdict import Mask

IdKind = Literal["job", "query", "request", "session", "upload", "table", "read_session"]
State = Literal["claimed", "held", "approved", "sent", "open", "failed", "denied", "expired", "stopped"]

# From which state a job may go where; what is not here does not happen.
#   claimed: its request has come, it has no permit yet.    held: it waits for a human; request and approval are kept.
#   approved: a human said yes, it has not left.            sent: it left, what became of it is not known yet.
#   open: the target has it and answers for it.             failed: the target refused it; reply is its answer.
#   denied, expired, stopped: it ended here and never left. stopped: its owner took it back, or its own time was over.
NEXT: Final[Mapping[State, frozenset[State]]] = {
    "claimed": frozenset({"held", "sent"}),
    "held": frozenset({"approved", "denied", "expired", "stopped"}),
    "approved": frozenset({"sent", "denied", "expired", "stopped"}),
    "sent": frozenset({"open", "failed"}),
    "open": frozenset(),
    "failed": frozenset(),
    "denied": frozenset(),
    "expired": frozenset(),
    "stopped": frozenset(),
}
UNSETTLED: Final = frozenset(state for state, after in NEXT.items() if after)
ENDED: Final[frozenset[State]] = frozenset({"denied", "expired", "stopped"})

ID_LIMIT: Final = 1024  # characters: the longest job id. Source: BigQuery REST v2, JobReference.jobId
# A query text has at most 1 MB (BigQuery quotas, "unresolved GoogleSQL query length"); as much again for parameters.
# What is longer cannot be held.
REQUEST_LIMIT: Final = 2 * 1024 * 1024
SCHEMA_LIMIT: Final = 4 * 1024 * 1024  # JSON of a table's schema: 10,000 columns (BigQuery quotas) with descriptions
REPLY_LIMIT: Final = 64 * 1024  # of an answer that is kept for polls; an error has some hundred bytes
REASON_LIMIT: Final = 4096  # as protocols/kubernetes/status.py shows of a message

DAY_SECONDS: Final = 86_400.0
# How long an entry is kept at most; then its id is unknown.
LIFE_SECONDS: Final[Mapping[IdKind, float]] = {
    "job": 30 * DAY_SECONDS,  # the target lists jobs for six months; nobody reads a result after a day. Ours
    "query": DAY_SECONDS + 3600,  # as the anonymous table that holds its result
    "request": 900.0,  # QueryRequest.requestId: 15 minutes
    "session": 7 * DAY_SECONDS,  # BigQuery sessions end after seven days at most
    "upload": 7 * DAY_SECONDS,  # a resumable upload's address holds for a week
    "table": DAY_SECONDS + 3600,  # anonymous tables live about 24 hours
    "read_session": DAY_SECONDS,  # the Storage Read API ends sessions after six hours, once after 24
}
ENDED_SECONDS: Final = DAY_SECONDS  # how long polls still learn that a job was denied


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose something is, whatever the proof. Two agents of one person are two owners."""

    subject: str
    issuer: str = ""
    agents: tuple[str, ...] = ()


def owner_of(identity: Identity) -> Owner:
    """The owner that an identity is."""
    return Owner(identity.subject, identity.issuer, identity.agents)


@dataclass(frozen=True, slots=True)
class Key:
    """The name of something at a target. location only narrows: "" fits any, as the service itself finds a job of its
    default locations without one. id of a table: "dataset.table"; of a read session: its whole name.
    """

    target: str
    kind: IdKind
    project: str
    id: str
    location: str = ""

    @property
    def sane(self) -> bool:
        """Whether anything can have this name: it is short enough, and text."""
        texts = (self.target, self.project, self.id, self.location)
        return bool(self.id) and all(len(text) <= ID_LIMIT and text.isprintable() for text in texts)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one id.

    rule, masks, facts: of the permit that it was made under (facts: JSON values). schema: the columns of its result
    as the target describes them, None while unknown: then no rows pass. destination: "project.dataset.table" of the
    result. parent: the id of the job that it stems from. digest: what an approval is bound to (holds.digest). mark: a
    random label that the job carries at the target, which tells it from one of the same id that somebody else made.
    request: of a held job, the body that will be sent. reply: what the target answered to a request that it refused.
    reason: why it ended. deadline: when the hold ends. session: the tape's id. process: who looks after it while it is
    unsettled, "" if nobody does. Times are seconds since the epoch.
    """

    key: Key
    owner: Owner
    state: State = "open"
    created: float = 0.0
    expires: float = 0.0
    changed: float = 0.0
    rule: str = ""
    masks: tuple[Mask, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    destination: str = ""
    parent: str = ""
    digest: str = ""
    mark: str = ""
    request: bytes = b""
    approval: str = ""
    reason: str = ""
    deadline: float | None = None
    reply_status: int = 0
    reply: bytes = b""
    session: str = ""
    process: str = ""


class Jobs(Protocol):
    """The registry. What a human has to do with is on the disk when a method returns; what else a power cut takes is
    nobody's from then on, which fails closed. All raise StoreError."""

    async def claim(self, entry: Entry) -> Entry | None:
        """Take an id for a command that is about to be decided; None: it is ours now, state "claimed".

        Else the entry that has the id: the owner's own (the command is repeated), or another's.
        """

    async def add(self, entries: Iterable[Entry]) -> None:
        """Note ids that an answer named (sessions, tables, children). One that is known keeps all of its masks."""

    async def find(self, key: Key, owner: Owner) -> Entry | None:
        """Look up what the owner owns; None for what is not there and for what is another's alike."""

    async def settle(self, key: Key, owner: Owner, state: State, **changes: Any) -> Entry | None:
        """Move a job along NEXT, with changes of Entry's fields; None: it was in no state that leads there.

        To "held" and "sent" it goes with rule and masks: nothing leaves before its masks are written down.
        """

    async def amend(self, key: Key, owner: Owner, **changes: Any) -> Entry | None:
        """Change what is known of an id (schema, destination) and not its state; None if there is none."""

    async def forget(self, key: Key, owner: Owner) -> None:
        """Drop an id: the target refused its request, or it was deleted."""

    async def wait(self, key: Key, owner: Owner, seconds: float) -> Entry | None:
        """Return the entry as soon as it no longer waits for a human (in any process), or when the time is over."""

    async def owned(self, owner: Owner, target: str, project: str, ids: Collection[str]) -> Mapping[str, str]:
        """Tell which of these jobs are the owner's, for a list of jobs, each with its location, "" where unknown."""

    async def waiting(self, owner: Owner, target: str, project: str) -> list[Entry]:
        """The owner's jobs that the target does not know (yet), the newest first, for a list of jobs."""

    async def adopt(self, limit: int) -> list[Entry]:
        """Take over jobs that a process of before left held or approved; each is given to one process only."""
