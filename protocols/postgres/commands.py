"""The conversation of one PostgreSQL session, without I/O: what the user asks, and what is sent in its place.

from_user() cuts the user's bytes into Asked (a Command to be decided, with its message), Frames, Pieces of a
long message, and Terminate. The caller decides, then calls permitted() or refuse() before it takes the next one;
both say what goes to the target. from_target() (answers.py) reads the way back. Both share one Pipeline.

Decided: Query, Parse (the text; a Hold waits for what runs it), Bind (the text with its values), Execute (again,
by the rules of that moment), FunctionCall. Frames: Describe, Close, Flush, Sync, CopyData, CopyDone, CopyFail.
Terminate ends the session. Anything else is a protocol violation.

A refused message is replaced by one that the target is certain to reject in its place (design, "Replace, don't
emulate"; postgres note 5), so that transaction, pipeline and order are what they are after any other error.
What cannot be read, because the client's encoding or standard_conforming_strings=off hides where a string ends,
is unknown. Source: PostgreSQL 18 docs 54.2, 54.7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from protocols.postgres import wire
from protocols.postgres.answers import Answer, Answers
from protocols.postgres.display import show_values
from protocols.postgres.encodings import codec_of
from protocols.postgres.pipeline import Pipeline
from protocols.postgres.reading import PROTOCOL_NAME, CommandReader, changes_catalogue, runs_by_name
from protocols.postgres.replication import replication_statement
from protocols.postgres.replies import Portal, Prepared, Reply
from proxy.core.errors import Refused, UserPeerError
from proxy.core.events import Command, Frame
from proxy.core.gate import Reader
from proxy.core.session import Part, Permit
from proxy.core.statement import Statement


@dataclass(frozen=True, slots=True)
class Asked:
    """A command to be decided. follows: the permit of the Bind that this Execute carries out, if any."""

    command: Command
    follows: Permit | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bytes of a long message whose head was decided on."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Terminate:
    """The user says goodbye."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class Ignored:
    """What the target would skip anyway, and so is not sent; it is taped."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class Settle:
    """What comes next depends on answers that are owed: have the target flush them, and take the next item only
    when done() says so (or never will: the user has gone)."""

    done: Callable[[], bool]


UserItem = Asked | Frame | Piece | Terminate | Ignored | Settle
Cargo = Permit | Part | Frame


class Conversation:
    """Both directions of one session. token() gives a fresh unguessable name of at most 62 ASCII letters."""

    def __init__(
        self,
        read: Reader,
        commands: CommandReader,
        token: Callable[[], str],
        *,
        query_limit: int = wire.QUERY_LIMIT,
        replication: bool = False,
        search_path: tuple[str, ...] | None = None,
    ) -> None:
        self.pipeline = Pipeline()
        self.answers = Answers(self.pipeline)
        self._read = read
        self._commands = commands
        self._token = token
        self._messages = wire.UserMessages(query_limit)
        self.date_style = "ISO, MDY"
        self._replication = replication
        self._search_path = search_path
        self._strings_unsafe = False
        self._reported = {"client_encoding": "UTF8", "standard_conforming_strings": "on"}
        self._unsettled = False  # something in flight may change how texts are read
        self._encoding_unsure = False
        self._asked: Reply | None = None
        self._asked_name = b""
        self._asked_wire = b""
        self._body: Permit | Frame | None = None  # whose pieces come next; None: they are dropped
        self._codec: str | None = "utf-8"

    # -- from the user --------------------------------------------------------------------------------

    def from_user(self, data: bytes) -> Iterator[UserItem]:
        """Cut what the user sent into items. Raises UserPeerError (08P01, 54000), which ends the session."""
        for kind, message, rest in self._messages.feed(data):
            if self.pipeline.skipping and kind not in (wire.SYNC, wire.PIECE, wire.TERMINATE):
                # Nobody is asked about what will not run. The target skips it, as it would have.
                self._body = None
                yield Ignored(message)
                continue
            if kind in _NAMING and not self._told(kind, message):
                yield Settle(partial(self._told, kind, message))
            if self.pipeline.skipping and kind not in _NEVER_SKIPPED:
                self._body = None
                yield Ignored(message)  # the target would skip it too: nobody need decide, or be asked to approve
                continue
            match kind:
                case wire.QUERY:
                    yield self._query(message)
                case wire.PARSE:
                    yield self._parse(message)
                case wire.BIND | wire.EXECUTE:
                    item = self._bind(message, rest) if kind == wire.BIND else self._execute(message)
                    if not isinstance(item, Asked):
                        yield Ignored(message)  # taped as the user's; what goes up in its place is the gate's
                    if item is not None:
                        yield item
                case wire.FUNCTION_CALL:
                    yield self._function_call(message, rest)
                case wire.PIECE:
                    yield self._piece(message)
                case wire.TERMINATE:
                    yield Terminate(message)
                    return
                case _:
                    yield self._plumb(kind, message)

    def _in_doubt(self, kind: int, message: bytes) -> bool:
        """Tell whether answers that are owed decide what this message means.

        SQL in flight may make or drop names; and a batch that is not answered may have failed, so that the names it
        changed still mean what they did before (see replies.py).
        """
        pipeline = self.pipeline
        if pipeline.peek() is None or pipeline.skipping:
            return False
        batch, answered = pipeline.batch, pipeline.answered
        if kind == wire.QUERY:
            return bool(pipeline.effects_pending or answered != batch) and _RUNS_NAMES.search(message) is not None
        if pipeline.effects_pending:
            return True
        if answered == batch:
            return False
        match kind:
            case wire.BIND:
                name = wire.parse_bound_name(message)
                prepared = pipeline.prepared.get(name)
                doubtful = pipeline.prepared.doubtful(name, batch, answered)
            case wire.EXECUTE:
                name, _ = wire.parse_execute(message)
                portal = pipeline.portals.get(name)
                prepared = portal.prepared if portal is not None else None
                doubtful = pipeline.portals.doubtful(name, batch, answered)
            case _:
                return False
        return doubtful or (prepared is not None and runs_by_name(prepared.statements))

    def _told(self, kind: int, message: bytes) -> bool:
        """Whether no doubt is left, or none that waiting could end: a COPY waits for the user."""
        return self.pipeline.copy_in or self.pipeline.copy_both or not self._in_doubt(kind, message)

    def setting(self, name: str, value: str) -> None:
        """Learn a setting of the session: start-up parameters and ParameterStatus."""
        if name in self._reported:
            self._reported[name] = value
            self._settle()
        elif name == "DateStyle":
            self.date_style = value
        elif name == "search_path":
            self._search_path = None

    def _settle(self) -> None:
        """Take what the target reported last for what holds now."""
        encoding = self._reported["client_encoding"]
        self._codec = codec_of(encoding)
        self.answers.encoding = self._codec or "latin-1"
        self.answers.client_encoding = encoding
        self._strings_unsafe = self._reported["standard_conforming_strings"] != "on"
        self._unsettled = self._encoding_unsure = False

    def permitted(self, permit: Permit) -> Sequence[Cargo]:
        """Take note of the leave for what was asked last; returns what to send, () if the target skips it."""
        reply, name = self._asked, self._asked_name
        assert reply is not None, "permitted() without a question"
        self._asked = None
        self._body = permit
        if self.pipeline.skipping:
            self._body = None
            return ()
        reply.permit = permit
        if permit.masks:
            self.answers.masking = True
        cargo: Sequence[Cargo] = (permit,)
        match reply.kind:
            case wire.QUERY:
                # A Query drops the unnamed statement and portal whatever becomes of it.
                self.pipeline.prepared.put(b"", None, self.pipeline.batch)
                self.pipeline.portals.put(b"", None, self.pipeline.batch)
            case wire.PARSE:
                reply.undo = self.pipeline.prepared.put(name, reply.prepared, self.pipeline.batch)
            case wire.BIND:
                assert reply.portal is not None
                reply.portal.permit = permit
                reply.undo = self.pipeline.portals.put(name, reply.portal, self.pipeline.batch)
            case wire.EXECUTE:
                if permit.masks and reply.portal is not None and not reply.portal.described:
                    # The masks need the columns, and a user who ran this before may not ask for them again. What the
                    # statement was once described as may not be what it is now: a changed search_path, or DDL, has
                    # the target read its text anew (PostgreSQL, src/backend/utils/cache/plancache.c).
                    reply.portal.described = True
                    ask = wire.encode_named(wire.DESCRIBE, ord("P"), name)
                    self.pipeline.push(Reply(wire.DESCRIBE, portal=reply.portal, hidden=True))
                    cargo = (Frame(ask, by_gate=True), permit)
        self.pipeline.push(reply)
        return cargo

    def refuse(self, refused: Refused) -> Frame | None:
        """Return what goes to the target in place of what was asked last; None if the target skips it anyway."""
        reply, name = self._asked, self._asked_name
        assert reply is not None, "refuse() without a question"
        self._asked = None
        self._body = None
        if self.pipeline.skipping:
            return None
        reply.refused = refused
        reply.effects = reply.ddl = False
        token = self._token()
        match reply.kind:
            case wire.QUERY:
                self.pipeline.prepared.put(b"", None, self.pipeline.batch)
                self.pipeline.portals.put(b"", None, self.pipeline.batch)
                replacement = wire.encode_query(_unparsable(token))
            case wire.PARSE:
                reply.undo = self.pipeline.prepared.put(name, reply.prepared, self.pipeline.batch)
                replacement = wire.encode_parse(name, _unparsable(token))
            case wire.BIND:
                reply.undo = self.pipeline.portals.put(name, reply.portal, self.pipeline.batch)
                replacement = wire.encode_bind(name, token.encode())
            case wire.EXECUTE:
                replacement = wire.encode_execute(token.encode())
            case _:
                replacement = wire.encode_function_call_zero()
        self.pipeline.push(reply)
        self.pipeline.skipping = reply.kind not in (wire.QUERY, wire.FUNCTION_CALL)  # the target is certain to
        return Frame(replacement, by_gate=True)

    def _query(self, message: bytes) -> Asked:
        text, statements = self._statements(wire.parse_query(message))
        self._asked = self._running(wire.QUERY, statements)
        return Asked(self._command(statements, text, message))

    @staticmethod
    def _running(kind: int, statements: Sequence[Statement], portal: Portal | None = None) -> Reply:
        effects = ddl = False
        for statement in statements:
            effects = effects or statement.verb in _NAME_VERBS
            ddl = ddl or changes_catalogue(statement)
        return Reply(kind, portal=portal, statements=statements, effects=effects, ddl=ddl)

    def _parse(self, message: bytes) -> Asked:
        name, body, oids = wire.parse_parse(message)
        text, statements = self._statements(body)
        self._asked = Reply(wire.PARSE, prepared=Prepared(text, statements, oids))
        self._asked_name = name
        return Asked(self._command(statements, text, message, prepares=True))

    def _bind(self, message: bytes, rest: int) -> Asked | Frame | None:
        bind = wire.parse_bind(message, rest)
        if self._in_doubt(wire.BIND, message):
            return self._unknown("BIND", message, Reply(wire.BIND, portal=Portal(Prepared("", ()))), bind.portal, rest)
        prepared = self.pipeline.prepared.get(bind.statement)
        if prepared is None:
            return self._missing(wire.BIND, bind.statement, "statement", bind.portal)
        values = show_values(bind, prepared.parameter_oids)
        portal = Portal(prepared, bind.result_formats or (), values)
        self._asked = Reply(wire.BIND, portal=portal)
        self._asked_name = bind.portal
        if bind.result_formats is None:
            portal.result_formats = (-1,)  # not read: the Execute asks for a description
        return Asked(self._command(prepared.statements, prepared.text, message, rest_bytes=rest, values=values))

    def _execute(self, message: bytes) -> Asked | Frame | None:
        name, _ = wire.parse_execute(message)
        if self._in_doubt(wire.EXECUTE, message):
            return self._unknown("EXECUTE", message, Reply(wire.EXECUTE), name, 0)
        portal = self.pipeline.portals.get(name)
        if portal is None:
            return self._missing(wire.EXECUTE, name, "portal", b"")
        statements = portal.prepared.statements
        self._asked = self._running(wire.EXECUTE, statements, portal)
        self._asked_name = name
        command = self._command(statements, portal.prepared.text, message, values=portal.values)
        return Asked(command, follows=portal.permit)

    def _function_call(self, message: bytes, rest: int) -> Asked:
        oid = wire.parse_function_oid(message)
        name = self._commands.function_name(oid) or f"oid {oid}"
        self._asked = Reply(wire.FUNCTION_CALL)
        return Asked(self._commands.function_call(name, message, rest))

    def _plumb(self, kind: int, message: bytes) -> UserItem:
        pipeline = self.pipeline
        self._body = Frame(b"")
        match kind:
            case wire.SYNC:
                pipeline.sent_sync()
            case wire.DESCRIBE:
                which, name = wire.parse_named(message)
                reply = Reply(kind)
                if which == ord("S"):
                    reply.prepared = pipeline.prepared.get(name)
                else:
                    reply.portal = pipeline.portals.get(name)
                    if reply.portal is not None:
                        reply.portal.described = True
                pipeline.push(reply)
            case wire.CLOSE:
                which, name = wire.parse_named(message)
                names = pipeline.prepared if which == ord("S") else pipeline.portals
                pipeline.push(Reply(kind, undo=names.put(name, None, pipeline.batch)))
            case wire.COPY_DONE | wire.COPY_FAIL:
                pipeline.sent_copy_end()
            case wire.FLUSH | wire.COPY_DATA:
                pass
            case _:
                raise UserPeerError("invalid frontend message type", "08P01")
        return Frame(message)

    def _piece(self, data: bytes) -> UserItem:
        match self._body:
            case None:
                return Ignored(data)
            case Frame():
                return Frame(data)
            case _:
                return Piece(data)

    def part(self, piece: Piece) -> Part:
        """Return the piece under the permit that its message was given."""
        assert isinstance(self._body, Permit), "a piece without a permit"
        return self._body.part(piece.data)

    def _missing(self, kind: int, name: bytes, what: str, own: bytes) -> Frame | None:
        """A name that the target does not know either: let it reject one that is certainly unknown.

        (The gate may know less than the target: names made inside functions. They are not reachable.)
        """
        self._body = None
        if self.pipeline.skipping:
            return None
        shown = name.decode("utf-8", "replace")
        reply = Reply(kind, missing=(what, shown))
        token = self._token().encode()
        if kind == wire.BIND:
            reply.undo = self.pipeline.portals.put(own, None, self.pipeline.batch)
            replacement = wire.encode_bind(own, token)
        else:
            replacement = wire.encode_execute(token)
        self.pipeline.push(reply)
        self.pipeline.skipping = True
        return Frame(replacement, by_gate=True)

    def _unknown(self, verb: str, message: bytes, reply: Reply, name: bytes, rest: int) -> Asked:
        self._asked, self._asked_name = reply, name
        shown = name.decode("utf-8", "replace")
        text = f"{verb} {shown!r}, whose meaning depends on what is still running"
        facts = {"statements": (), "resolved": {}, "opaque": True, "opaque_reason": text}
        return Asked(Command(PROTOCOL_NAME, "UNPARSABLE", "unknown", text, message, (), facts, False, rest_bytes=rest))

    # -- reading texts --------------------------------------------------------------------------------

    def _statements(self, body: bytes) -> tuple[str, Sequence[Statement]]:
        if self._unsettled and self.pipeline.peek() is None:
            self._settle()  # reports come before ReadyForQuery: nothing is in flight, so they are the truth
        if self._codec is None or (self._encoding_unsure and not body.isascii()):
            text = body.decode("ascii", "backslashreplace")
            return text, (_unreadable(text, "this client_encoding can hide where a string ends; use UTF8"),)
        try:
            text = body.decode(self._codec)
        except UnicodeDecodeError:
            text = body.decode(self._codec, "backslashreplace")
            return text, (_unreadable(text, "the text is not valid in the session's client_encoding"),)
        if self._strings_unsafe and "\\" in text:
            return text, (_unreadable(text, "standard_conforming_strings is off, or may be"),)
        if self._replication:
            statement = replication_statement(text)
            if statement is not None:
                return text, (statement,)
        statements = self._read(text)
        for statement in statements:
            if statement.setting is not None or statement.opaque:
                self._learn(statement)
        return text, statements

    def _learn(self, statement: Statement) -> None:
        """Prepare for what a SET, or code that nobody can see, may do before the target reports it."""
        if statement.setting is None:
            self._unsettled = self._strings_unsafe = self._encoding_unsure = True
            self._search_path = None
            return
        name, value = statement.setting[0].lower(), statement.setting[1]
        if name in ("client_encoding", "names"):
            self._unsettled = True
            if value is None or codec_of(value) != self._codec:
                self._encoding_unsure = True
            if value is not None and codec_of(value) is None:
                self._codec = None
        elif name == "standard_conforming_strings":
            self._unsettled = self._strings_unsafe = True
        elif name == "all":
            self._unsettled = self._strings_unsafe = self._encoding_unsure = True
        if name in ("search_path", "schema", "role", "session_authorization", "all"):
            self._search_path = None

    def _command(
        self,
        statements: Sequence[Statement],
        text: str,
        message: bytes,
        *,
        prepares: bool = False,
        rest_bytes: int = 0,
        values: tuple[str | None, ...] | None = None,
    ) -> Command:
        return self._commands.command(
            statements,
            text,
            message,
            self._lookup,
            self._search_path,
            prepares=prepares,
            rest_bytes=rest_bytes,
            values=values,
            unsure=self.pipeline.unsure,
        )

    def _lookup(self, verb: str, name: str) -> Sequence[Statement] | None:
        if self.pipeline.effects_pending:
            return None
        key = name.encode("utf-8", "surrogateescape")
        if verb == "EXECUTE":
            prepared = self.pipeline.prepared.get(key)
        else:
            portal = self.pipeline.portals.get(key)
            prepared = portal.prepared if portal is not None else None
        return prepared.statements or None if prepared is not None else None

    # -- from the target ------------------------------------------------------------------------------

    def from_target(self, data: bytes) -> Iterator[Answer]:
        """Read what the target sent: see answers.py. Raises TargetPeerError."""
        return self.answers.feed(data)


def _unparsable(token: str) -> bytes:
    """A text that no PostgreSQL parses; the token ties the target's log line to the tape, and says no more."""
    return f"gatecast_denied /* {token} */".encode()


def _unreadable(text: str, why: str) -> Statement:
    return Statement("UNPARSABLE", "unknown", text, opaque=True, opaque_reason=why, error=why, literal_free=False)


_RUNS_NAMES: Final = re.compile(rb"execute|fetch|move", re.IGNORECASE)
# What makes a meaning or uses one.
_NEVER_SKIPPED: Final = frozenset((wire.SYNC, wire.TERMINATE, wire.PIECE))
_NAMING: Final = frozenset((wire.QUERY, wire.PARSE, wire.BIND, wire.EXECUTE, wire.CLOSE))
_NAME_VERBS: Final = frozenset(("PREPARE", "DEALLOCATE", "DECLARE", "CLOSE", "DISCARD", "UNPARSABLE"))
