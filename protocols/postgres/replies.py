"""What the target still owes, and the names of statements and portals as they will be then.

Every message sent to the target leaves a Reply in a queue, in order; answers are matched to its head. Names are
registered when a message is sent, so that a pipeline can use what it has just parsed, and taken back if the
target skips or fails that message: what the gate believes a name to mean is what the target will run. Up to the
next Sync that holds whatever happens, for a failure skips all of it; a name that an earlier batch has changed is
in doubt until that batch's Sync is answered (doubtful), and nothing is decided on it before.
(A stale belief the other way, a name that the target no longer has, is harmless: the target rejects it.)

Deliberately left out: names that a function body makes by dynamic SQL. Who may run opaque code may run anything.

Source: PostgreSQL 18 docs 54.2.3 Extended Query, 54.2.4 Pipelining.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from protocols.postgres.wire import Field
from proxy.core.errors import Refused
from proxy.core.events import Column
from proxy.core.session import Permit
from proxy.core.statement import Statement

QUEUE_LIMIT: Final = 100_000  # messages in flight; asyncpg's executemany of a million rows waits before that

Value = TypeVar("Value")


@dataclass(eq=False, slots=True)
class Prepared:
    """A prepared statement: its text as decided, and its columns once the target has described them."""

    text: str
    statements: Sequence[Statement]
    parameter_oids: tuple[int, ...] = ()
    fields: tuple[Field, ...] | None = None


@dataclass(eq=False, slots=True)
class Portal:
    """A bound portal or an SQL cursor: what it runs, in which formats, and by whose leave."""

    prepared: Prepared
    result_formats: tuple[int, ...] = ()
    values: tuple[str | None, ...] = ()
    permit: Permit | None = None
    fields: tuple[Field, ...] | None = None
    described: bool = False  # a description of this very portal has been asked for


@dataclass(eq=False, slots=True)
class Reply:
    """What one message sent to the target is owed.

    kind: the message's type byte. undo: what to take back if the target does not carry it out. hidden: the gate
    asked, the user must not see the answer. batch: of a Sync, its number. effects: its text makes or drops names by
    SQL. ddl: its text may change the catalogue. missing: the name that the user used and nobody knows, and its kind.
    """

    kind: int
    permit: Permit | None = None
    refused: Refused | None = None
    undo: Undo | None = None
    statements: Sequence[Statement] = ()
    effects: bool = False
    ddl: bool = False
    prepared: Prepared | None = None
    portal: Portal | None = None
    hidden: bool = False
    missing: tuple[str, str] | None = None
    batch: int = 0
    completed: int = 0
    fields: tuple[Field, ...] | None = None
    columns: tuple[Column, ...] | None = None
    shown: list[bytes] = field(default_factory=list)
    row_count: int = 0
    size_bytes: int = 0


@dataclass(eq=False, slots=True)
class Undo:
    """How a name was before a message, and what the message made of it (None: it took the name away)."""

    names: Names[Prepared] | Names[Portal]
    name: bytes
    before: object
    after: object


class Names(Generic[Value]):
    """One namespace: statements or portals. Values are compared by identity."""

    def __init__(self) -> None:
        self._values: dict[bytes, Value] = {}
        self._changed: dict[bytes, int] = {}  # in which batch, counted in Syncs

    def get(self, name: bytes) -> Value | None:
        """Return what the name will mean when the target gets to the next message, None if nothing."""
        return self._values.get(name)

    def put(self, name: bytes, value: Value | None, batch: int) -> Undo:
        """Set or (None) remove a name by a message of that batch; returns how to undo it."""
        before = self._values.get(name)
        self._changed[name] = batch
        if value is None:
            self._values.pop(name, None)
        else:
            self._values[name] = value
        return Undo(self, name, before, value)  # type: ignore[arg-type]  # a Names of either kind

    def doubtful(self, name: bytes, batch: int, answered: int) -> bool:
        """Tell whether a batch before this one has changed the name, and may still fail to: it is not answered."""
        return answered <= self._changed.get(name, batch) < batch

    def settled(self, answered: int) -> None:
        """Forget which batches changed what, of those that are answered."""
        if self._changed:
            self._changed = {name: batch for name, batch in self._changed.items() if batch >= answered}

    def take_back(self, undo: Undo, later: Iterable[Reply], gone: bool) -> None:
        """Undo one change. later: the replies behind it, which may have built on it. gone: the name is free now.

        A failed Parse or Bind of the unnamed statement or portal leaves nothing behind (gone); a skipped or
        otherwise failed one leaves what was there before.
        """
        before = None if gone else undo.before
        for reply in later:
            if reply.undo is not None and reply.undo.names is self and reply.undo.name == undo.name:
                if reply.undo.before is undo.after:
                    reply.undo.before = before
                return
        if self._values.get(undo.name) is not undo.after:
            return
        if before is None:
            self._values.pop(undo.name, None)
        else:
            self._values[undo.name] = before  # type: ignore[assignment]

    def clear(self, keep_unnamed: bool = False) -> None:
        """Forget all names."""
        unnamed = self._values.get(b"") if keep_unnamed else None
        self._values.clear()
        if unnamed is not None:
            self._values[b""] = unnamed
