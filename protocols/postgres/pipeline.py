"""The order of things between user and target: replies owed, skipping after an error, COPY, names.

After an error in the extended protocol the target skips everything up to the next Sync, simple queries
included; a failed simple query skips nothing. While COPY FROM STDIN runs the target ignores Flush and Sync, so
the Syncs sent before CopyDone are struck off. Source: PostgreSQL 18 docs 54.2.3, 54.2.6; postgres note 4, 7.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocols.postgres.replies import QUEUE_LIMIT, Names, Portal, Prepared, Reply
from protocols.postgres.wire import (
    BIND,
    COPY_DONE,
    FUNCTION_CALL,
    PARSE,
    QUERY,
    SYNC,
)
from proxy.core.errors import TargetPeerError, UserPeerError
from proxy.core.statement import Statement

# CommandComplete tags of what changes the catalogue.
_DDL: Final = ("CREATE", "ALTER", "DROP", "REFRESH", "IMPORT", "DO", "CALL")


class Pipeline:
    """The state that both directions of a conversation share."""

    def __init__(self) -> None:
        self.replies: deque[Reply] = deque()
        self.prepared: Names[Prepared] = Names()
        self.portals: Names[Portal] = Names()
        self.skipping = False  # the target skips until the next Sync, which has not been sent yet
        self.copy_in = False  # the target takes COPY data
        self.copy_both = False
        self.status = ord("I")  # the target's last ReadyForQuery
        self.effects_pending = 0  # replies owed whose text makes or drops names by SQL
        self.ddl_open = False  # DDL has run in a transaction that may still be open
        self.ddl_done = False  # such a transaction has ended: the catalogue is behind
        self.ddl_pending = 0  # replies owed whose text may change the catalogue
        self.batch = 0  # Syncs sent
        self.answered = 0  # batches whose Sync has been answered, and all before it

    def push(self, reply: Reply) -> None:
        """Note that a message was sent. Raises UserPeerError when too many are in flight."""
        if len(self.replies) >= QUEUE_LIMIT:
            raise UserPeerError("too many messages in flight", "54000")
        self.replies.append(reply)
        self.effects_pending += reply.effects
        self.ddl_pending += reply.ddl

    def sent_sync(self) -> None:
        """A Sync goes up: it is owed a ReadyForQuery unless COPY FROM STDIN runs."""
        self.skipping = False
        if not (self.copy_in or self.copy_both):
            self.push(Reply(SYNC, batch=self.batch))
            self.batch += 1

    def sent_copy_end(self) -> None:
        """CopyDone or CopyFail goes up: Syncs behind it count again."""
        if self.copy_in or self.replies:
            self.push(Reply(COPY_DONE))
        self.copy_in = False

    def head(self) -> Reply:
        """Return the reply that the target's next answer belongs to. Raises TargetPeerError if none is owed."""
        replies = self.replies
        while replies and replies[0].kind == COPY_DONE:
            replies.popleft()
        if not replies:
            raise TargetPeerError("the target answered what nobody asked", "08P01")
        return replies[0]

    def peek(self) -> Reply | None:
        """Return the head, or None when the target owes nothing."""
        replies = self.replies
        while replies and replies[0].kind == COPY_DONE:
            replies.popleft()
        return replies[0] if replies else None

    def done(self) -> Reply:
        """Take the head off: the target has answered it."""
        reply = self.head()
        self.replies.popleft()
        self.effects_pending -= reply.effects
        self.ddl_pending -= reply.ddl
        if reply.kind == SYNC:
            self.answered = reply.batch + 1
            self.prepared.settled(self.answered)
            self.portals.settled(self.answered)
        return reply

    @property
    def unsure(self) -> bool:
        """Whether DDL that the catalogue cannot show yet may have changed what is behind names."""
        return self.ddl_open or self.ddl_pending > 0

    def ready(self, status: int) -> None:
        """ReadyForQuery came."""
        self.status = status
        if self.ddl_open and status == ord("I"):
            self.ddl_open, self.ddl_done = False, True

    def began_copy_in(self) -> None:
        """CopyInResponse came: the Syncs that were sent before CopyDone are ignored by the target."""
        self.head()
        kept: list[Reply] = []
        ended = False
        for index, reply in enumerate(self.replies):
            if not ended and index and reply.kind == COPY_DONE:
                ended = True
            if reply.kind == SYNC and not ended:
                continue
            kept.append(reply)
        self.replies = deque(kept)
        self.copy_in = not ended

    def failed(self) -> list[Reply]:
        """ErrorResponse came: undo and drop what will not be carried out; returns it, the failed one first.

        The head itself stays if a ReadyForQuery is still owed to it (Query, FunctionCall, Sync).
        """
        self.copy_in = self.copy_both = False
        head = self.head()
        if head.kind in (QUERY, FUNCTION_CALL, SYNC):
            return [head]
        dropped: list[Reply] = []
        while self.replies and self.replies[0].kind != SYNC:
            dropped.append(self.replies.popleft())
        for reply in reversed(dropped):
            self.effects_pending -= reply.effects
            self.ddl_pending -= reply.ddl
            if reply.undo is not None:
                # A failed Parse or Bind drops the unnamed one before anything else; a named one stays as it was.
                gone = reply is head and reply.kind in (PARSE, BIND) and reply.undo.name == b""
                reply.undo.names.take_back(reply.undo, self.replies, gone)
        self.skipping = not self.replies
        return dropped

    def complete(self, reply: Reply, tag: str) -> Statement | None:
        """CommandComplete came for one statement of the reply: let its effect on names happen; returns it."""
        statements = reply.statements
        index = reply.completed
        reply.completed += 1
        statement = statements[index] if index < len(statements) else None
        # CREATE TABLE AS and SELECT INTO complete as SELECT.
        if tag.startswith(_DDL) or (statement is not None and statement.verb in ("CREATE TABLE AS", "SELECT INTO")):
            self.ddl_open = True
        if tag in ("DISCARD ALL", "DEALLOCATE ALL"):
            self.prepared.clear()
        if tag in ("DISCARD ALL", "CLOSE CURSOR ALL"):
            self.portals.clear()
        if tag in ("PREPARE", "DECLARE CURSOR", "DEALLOCATE", "CLOSE CURSOR"):
            self._name_effect(reply, statement, tag)
        return statement

    def _name_effect(self, reply: Reply, statement: Statement | None, tag: str) -> None:
        if statement is None or statement.name is None or (tag == "PREPARE" and statement.inner is None):
            # The target did what the text did not show: from here no SQL-level name is known for sure.
            self.prepared.clear(keep_unnamed=True)
            self.portals.clear(keep_unnamed=True)
            return
        name = statement.name.encode("utf-8", "surrogateescape")
        now = -1  # it has happened: no doubt is left
        match tag:
            case "PREPARE":
                assert statement.inner is not None
                self.prepared.put(name, Prepared(statement.inner.text, (statement.inner,)), now)
            case "DECLARE CURSOR":
                inner = (statement.inner,) if statement.inner is not None else ()
                text = statement.inner.text if statement.inner is not None else statement.text
                self.portals.put(name, Portal(Prepared(text, inner), permit=None), now)
            case "DEALLOCATE":
                self.prepared.put(name, None, now)
            case _:
                self.portals.put(name, None, now)
