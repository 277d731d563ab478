"""The way back: what a PostgreSQL target sends, matched to what it was asked, cut at what needs a mask.

feed() looks at message headers only. What needs nothing passes as the slice it came in, whole buffers at a
time; a long row without a mask is not even waited for. Rows under a mask, errors, notices and notifications
come out as events for Session.reveal. When a column has to be known first, feed() says so (NeedColumns,
NeedCopy) and the caller fills it in before taking the next answer.

For the tape's RESULT records the first rows are kept as the user saw them. Source: PostgreSQL 18 docs 54.2, 54.7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocols.postgres import wire
from protocols.postgres.copy import CopyMask
from protocols.postgres.pipeline import Pipeline
from protocols.postgres.refusal import missing_fields, refusal_fields
from protocols.postgres.replies import Reply
from protocols.postgres.rows import count_rows, first_rows, rewrite_rows
from protocols.postgres.startup import encode_error, error_fields
from proxy.core.errors import TargetPeerError
from proxy.core.events import CellMask, Column, Event, Frame, Output, Remark, RemarkFields, Result, Rows
from proxy.core.session import Permit
from proxy.core.statement import Copy, Statement

SHOWN_ROWS: Final = 20  # rows of a result that the tape keeps decoded; all are there byte for byte
SHOWN_BYTES: Final = 16 * 1024
MASKED_MESSAGE_LIMIT: Final = 64 * 1024 * 1024  # a row under a mask is held whole

DATA_ROW: Final = ord("D")
COPY_DATA: Final = ord("d")
_FATAL: Final = ("FATAL", "PANIC")
_ROLES: Final[Mapping[str, str]] = {
    "M": "message", "D": "detail", "H": "hint", "W": "where", "q": "query", "C": "code",
}  # fmt: skip
_LETTERS: Final = {role: letter for letter, role in _ROLES.items()}


@dataclass(frozen=True, slots=True)
class Revealed:
    """Something for the user. permit: whose answer it is. reply: give what the user got to show(), if set."""

    permit: Permit | None
    event: Event
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class NeedColumns:
    """Set reply.columns from fields before the next answer is taken."""

    reply: Reply
    fields: tuple[wire.Field, ...]
    statement: Statement | None


@dataclass(frozen=True, slots=True)
class NeedCopy:
    """Set reply.columns for the COPY (count columns) before the next answer is taken."""

    reply: Reply
    copy: Copy
    statement: Statement
    count: int


@dataclass(frozen=True, slots=True)
class Ended:
    """One command ended: for the tape. tag is '' where it failed, 'SKIPPED' where an earlier failure skipped it."""

    permit: Permit
    result: Result


@dataclass(frozen=True, slots=True)
class Status:
    """A ParameterStatus passed."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Fatal:
    """The target ends the session; its own error has been revealed."""


Answer = Revealed | NeedColumns | NeedCopy | Ended | Status | Fatal


class Answers:
    """Reads the target's side of one conversation."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._parts: list[bytes | bytearray] = []
        self._have = 0
        self._need = 0
        self._through = 0  # bytes of a long message that pass as they come
        self._after: list[Answer] = []  # what is to be said behind the bytes that pass
        self._copies: dict[int, CopyMask] = {}
        self.masking = False  # a permit with masks was given in this session
        self.encoding = "utf-8"  # Python's codec for client_encoding
        self.client_encoding = "UTF8"

    @property
    def between_messages(self) -> bool:
        """Whether a message of ours may be put into the stream now."""
        return not self._through

    def feed(self, data: bytes) -> Iterator[Answer]:
        """Yield answers for what the target sent. Raises TargetPeerError."""
        if self._parts:
            wire.gather(self._parts, data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
        pos = start = 0
        size = len(data)
        if self._through:
            pos = min(self._through, size)
            self._through -= pos
        while size - pos >= 5:
            kind, length = wire.HEADER.unpack_from(data, pos)
            end = pos + 1 + length
            if kind in (DATA_ROW, COPY_DATA):
                reply = self._pipeline.head()
                if reply.permit is None or reply.permit.masks:
                    stop, count = _run(data, pos, kind)
                    if count:
                        if start < pos:
                            yield Revealed(None, Output("out", data[start:pos]))
                        yield from self._masked(reply, kind, data, pos, stop, count)
                        start = pos = stop
                        continue
                    if length > MASKED_MESSAGE_LIMIT:
                        raise TargetPeerError("a row under a mask is too long", "54000")
                    break
                stop = self._pass(reply, kind, data, pos, length)
                if stop == pos:
                    break
                pos = stop
                continue
            if end > size:
                if not 4 <= length <= wire.TARGET_MESSAGE_LIMIT:
                    raise TargetPeerError("the target sent a message of a length that cannot be", "08P01")
                break
            answers = self._message(kind, data, pos, end)
            if answers is not None:
                if start < pos:
                    yield Revealed(None, Output("out", data[start:pos]))
                start = end
                yield from answers
            pos = end
        if start < pos:
            yield Revealed(None, Output("out", data if start == 0 and pos == size else data[start:pos]))
        if pos < size:
            rest = data[pos:] if pos else data
            self._parts, self._have = [rest], size - pos
            self._need = 1 + wire.HEADER.unpack_from(rest)[1] if len(rest) >= 5 else 5
        if self._after:
            after, self._after = self._after, []
            yield from after

    def show(self, reply: Reply, data: bytes) -> None:
        """Keep the first rows of what the user saw of a reply."""
        if data and data[0] == DATA_ROW:
            _keep_first(reply, data, 0, len(data))

    # -- rows and COPY data -----------------------------------------------------------------------------

    def _pass(self, reply: Reply, kind: int, data: bytes, pos: int, length: int) -> int:
        """Let unmasked rows pass: returns where they end, pos if the one there is still to come."""
        if length < 4:
            raise TargetPeerError("the target sent a message of a length that cannot be", "08P01")
        stop, count = _run(data, pos, kind)
        if count:
            reply.row_count += count
            reply.size_bytes += stop - pos
            if kind == DATA_ROW and len(reply.shown) < SHOWN_ROWS:
                _keep_first(reply, data, pos, stop)
            return stop
        if length <= wire.STREAM_BYTES:
            return pos
        self._through = pos + 1 + length - len(data)
        reply.row_count += 1
        reply.size_bytes += length + 1
        return len(data)

    def _masked(self, reply: Reply, kind: int, data: bytes, pos: int, stop: int, count: int) -> Iterator[Answer]:
        permit = reply.permit
        if permit is None:
            raise TargetPeerError("the target sent rows for a command that was not permitted", "08P01")
        reply.row_count += count
        reply.size_bytes += stop - pos
        chunk = data[pos:stop]
        if kind == DATA_ROW:
            if reply.columns is None:
                fields = self._fields(reply)
                if fields is None:
                    raise TargetPeerError("the target sent rows without a description", "08P01")
                yield NeedColumns(reply, fields, self._statement(reply))
            assert reply.columns is not None, "NeedColumns was not answered"
            rows = Rows(reply.columns, chunk, lambda cells: rewrite_rows(chunk, cells))
            yield Revealed(permit, rows, reply)
        else:
            statement = self._statement(reply)
            if reply.columns is None or statement is None or statement.copy is None:
                raise TargetPeerError("the target sent COPY data that no mask can be put on", "08P01")
            copy = Rows(reply.columns, chunk, lambda cells: self._copy_masked(reply, chunk, cells))
            yield Revealed(permit, copy, reply)

    def _copy_masked(self, reply: Reply, chunk: bytes, cells: Sequence[CellMask | None]) -> bytes:
        mask = self._copies.get(id(reply))
        if mask is None:
            statement = self._statement(reply)
            assert statement is not None and statement.copy is not None and reply.columns is not None
            mask = CopyMask(statement.copy, cells, len(reply.columns), self.client_encoding)
            self._copies[id(reply)] = mask
        return mask.feed_messages(chunk)

    def _fields(self, reply: Reply) -> tuple[wire.Field, ...] | None:
        if reply.fields is not None:
            return reply.fields
        portal = reply.portal
        if portal is None:
            return None
        if portal.fields is not None:
            return portal.fields
        fields = portal.prepared.fields
        if fields is None or portal.result_formats == (-1,):
            return None
        return tuple(
            wire.Field(f.name, f.table_oid, f.attnum, f.type_oid, f.type_mod, wire.format_of(portal.result_formats, i))
            for i, f in enumerate(fields)
        )

    @staticmethod
    def _statement(reply: Reply) -> Statement | None:
        return reply.statements[reply.completed] if reply.completed < len(reply.statements) else None

    # -- all other messages -----------------------------------------------------------------------------

    def _message(self, kind: int, data: bytes, pos: int, end: int) -> Sequence[Answer] | None:
        """Take note of one whole message; None lets it pass, else the answers stand in its place."""
        match kind:
            case 90:  # Z ReadyForQuery
                reply = self._pipeline.done()
                if reply.kind not in (wire.SYNC, wire.QUERY, wire.FUNCTION_CALL):
                    raise TargetPeerError("the target was ready before it had answered", "08P01")
                self._pipeline.ready(data[end - 1])
                return None
            case 67:  # C CommandComplete
                self._complete(wire.command_tag(data[pos:end]))
                return None
            case 84 | 110 | 116:  # T RowDescription, n NoData, t ParameterDescription
                return self._description(kind, data[pos:end])
            case 49 | 50 | 51:  # 1 ParseComplete, 2 BindComplete, 3 CloseComplete
                if self._pipeline.done().kind != (wire.PARSE, wire.BIND, wire.CLOSE)[kind - 49]:
                    raise TargetPeerError("the target answered another message than was asked", "08P01")
                return None
            case 69:  # E ErrorResponse
                return self._error(data[pos:end])
            case 78:  # N NoticeResponse
                reply_now = self._pipeline.peek()
                permit = reply_now.permit if reply_now is not None else None
                return self._remark(permit, error_fields(data[pos + 5 : end]), data[pos:end], b"N")
            case 83 | 65:  # S ParameterStatus, A NotificationResponse
                return self._told(kind, data[pos:end])
            case 71 | 72 | 87 | 99:  # G CopyIn, H CopyOut, W CopyBoth, c CopyDone
                return self._copy(kind, data[pos:end])
            case 73 | 115:  # I EmptyQueryResponse, s PortalSuspended
                self._complete("" if kind == 73 else "SUSPENDED")
                return None
            case 86:  # V FunctionCallResponse
                return self._function_result(data[pos:end])
            case _:
                raise TargetPeerError(f"the target sent a message of unknown type {kind}", "08P01")

    def _complete(self, tag: str) -> None:
        pipeline = self._pipeline
        reply = pipeline.head()
        if reply.kind not in (wire.QUERY, wire.EXECUTE):
            raise TargetPeerError("the target completed what was not run", "08P01")
        if tag not in ("", "SUSPENDED"):
            pipeline.complete(reply, tag)
        if reply.permit is not None:
            self._after.append(Ended(reply.permit, self._result(reply, tag)))
        self._copies.pop(id(reply), None)
        if reply.kind == wire.EXECUTE:
            pipeline.done()
        else:
            reply.fields = reply.columns = None
            reply.shown, reply.row_count, reply.size_bytes = [], 0, 0

    def _result(self, reply: Reply, tag: str) -> Result:
        if not reply.row_count:
            return Result(tag)
        fields = self._fields(reply)
        rows: tuple[tuple[str | None, ...], ...] = ()
        columns: tuple[str, ...] = ()
        if fields is not None:
            columns = tuple(field.name for field in fields)
        if reply.shown:
            types = [(field.type_oid, field.format == 1) for field in fields] if fields is not None else []
            rows = first_rows(b"".join(reply.shown), SHOWN_ROWS, types, self.encoding)
            if not columns and rows:
                columns = tuple(f"column{index + 1}" for index in range(len(rows[0])))
        return Result(tag, columns, rows, reply.row_count, reply.size_bytes)

    def _description(self, kind: int, message: bytes) -> Sequence[Answer] | None:
        reply = self._pipeline.head()
        fields = wire.parse_row_description(message) if kind == 84 else ()
        if reply.kind == wire.QUERY and kind == 84:
            reply.fields, reply.columns = fields, None
            return None
        if reply.kind != wire.DESCRIBE:
            raise TargetPeerError("the target described what nobody asked about", "08P01")
        if kind == 116:
            if reply.prepared is not None:
                reply.prepared.parameter_oids = wire.parse_parameter_description(message)
            return None
        if reply.prepared is not None:
            reply.prepared.fields = fields
        if reply.portal is not None:
            reply.portal.fields = fields
        self._pipeline.done()
        return () if reply.hidden else None

    def _copy(self, kind: int, message: bytes) -> Sequence[Answer] | None:
        reply = self._pipeline.head()
        if reply.kind not in (wire.QUERY, wire.EXECUTE):
            raise TargetPeerError("the target began a COPY that nobody asked for", "08P01")
        masked = reply.permit is not None and reply.permit.masks
        match kind:
            case 71:
                self._pipeline.began_copy_in()
            case 87:
                self._pipeline.copy_both = True
            case 72 if masked:
                _, formats = wire.parse_copy_response(message)
                statement = self._statement(reply)
                if statement is None or statement.copy is None:
                    raise TargetPeerError("a COPY that no mask can be put on", "08P01")
                return (
                    Revealed(None, Frame(message)),
                    NeedCopy(reply, statement.copy, statement, len(formats)),
                )
            case 99 if masked:
                mask = self._copies.pop(id(reply), None)
                rest = mask.finish() if mask is not None else b""
                tail = wire.message(COPY_DATA, rest) if rest else b""
                return (Revealed(None, Frame(tail + message)),)
            case 99:
                self._pipeline.copy_both = False
        return None

    def _function_result(self, message: bytes) -> Sequence[Answer] | None:
        reply = self._pipeline.head()
        if reply.kind != wire.FUNCTION_CALL or reply.permit is None:
            raise TargetPeerError("the target answered a function that nobody called", "08P01")
        self._after.append(Ended(reply.permit, Result("FUNCTION CALL", row_count=1, size_bytes=len(message))))
        if not reply.permit.masks:
            return None
        column = Column("result", None, "other", None)

        def rewrite(cells: Sequence[CellMask | None]) -> bytes:
            # Whatever the mask is: nobody knows the type here, and NULL is of every type.
            return wire.message(ord("V"), b"\xff\xff\xff\xff") if cells and cells[0] is not None else message

        return (Revealed(reply.permit, Rows((column,), message, rewrite)),)

    def _told(self, kind: int, message: bytes) -> Sequence[Answer] | None:
        if kind == 83:
            name, value = wire.parse_parameter_status(message)
            status = Status(name, value)
            if not self.masking or name != "application_name":
                self._after.append(status)
                return None
            # The one reported setting that a statement may set to any text.

            def restate(fields: RemarkFields) -> bytes:
                body = name.encode() + b"\0" + fields["value"].encode("utf-8", "replace").replace(b"\0", b"") + b"\0"
                return wire.message(83, body)

            return (Revealed(None, Remark({"value": value}, message, restate)), status)
        if not self.masking:
            return None
        pid, channel, payload = wire.parse_notification(message)

        def renotify(fields: RemarkFields) -> bytes:
            return wire.encode_notification(pid, channel, fields["payload"].encode("utf-8", "replace"))

        return (Revealed(None, Remark({"payload": payload.decode("utf-8", "replace")}, message, renotify)),)

    # -- errors -----------------------------------------------------------------------------------------

    def _error(self, message: bytes) -> Sequence[Answer] | None:
        fields = error_fields(message[5:])
        if fields.get("V", fields.get("S")) in _FATAL:
            head = self._pipeline.peek()
            return (*(self._remark(head.permit if head else None, fields, message, b"E") or _as_is(message)), Fatal())
        dropped = self._pipeline.failed()
        head = dropped[0]
        self._copies.pop(id(head), None)
        answers: Sequence[Answer] | None
        if head.refused is not None:
            answers = _as_is(encode_error(refusal_fields(fields, head.refused)))
        elif head.missing is not None:
            answers = _as_is(encode_error(missing_fields(fields, *head.missing)))
        else:
            answers = self._remark(head.permit, fields, message, b"E")
        if head.permit is not None:
            text = self._readable(fields.get("M", "")) if answers is None else "(masked)"
            error = {"severity": fields.get("S", "ERROR"), "code": fields.get("C", ""), "message": text}
            self._after.append(Ended(head.permit, Result("", error=error)))
        for reply in dropped[1:]:
            if reply.permit is not None:
                self._after.append(Ended(reply.permit, Result("SKIPPED")))
        return answers

    def _readable(self, text: str) -> str:
        """The text of a message as the user reads it, who may have asked for another encoding than UTF-8."""
        return text.encode("utf-8", "surrogateescape").decode(self.encoding, "replace")

    def _remark(
        self, permit: Permit | None, fields: Mapping[str, str], message: bytes, kind: bytes
    ) -> Sequence[Answer] | None:
        """An error or notice: None lets it pass where no mask is about."""
        if not (permit.masks if permit is not None else self.masking):
            return None
        roles: dict[str, Any] = {_ROLES.get(letter, letter): value for letter, value in fields.items()}
        roles["severity"] = fields.get("V", fields.get("S", ""))  # V is the one that is not in the user's language

        def rewrite(masked: RemarkFields) -> bytes:
            kept = {_LETTERS.get(role, role): value for role, value in masked.items() if role != "severity"}
            for letter in "qDW":  # an internal query quotes values as it likes
                if letter == "q" or not kept.get(letter):
                    kept.pop(letter, None)
            return encode_error(kept, kind)

        return (Revealed(permit, Remark(roles, message, rewrite)),)


def _as_is(message: bytes) -> Sequence[Answer]:
    return (Revealed(None, Frame(message)),)


def _run(data: bytes, pos: int, kind: int) -> tuple[int, int]:
    """Walk messages of one type: (end of the last complete one, how many)."""
    if kind == DATA_ROW:
        return count_rows(data, pos)
    unpack = wire.HEADER.unpack_from
    size = len(data) - 5
    count = 0
    while pos <= size:
        letter, length = unpack(data, pos)
        end = pos + 1 + length
        if letter != kind or end > size + 5:
            break
        if length < 4:
            raise TargetPeerError("the target sent a message of a length that cannot be", "08P01")
        pos = end
        count += 1
    return pos, count


def _keep_first(reply: Reply, data: bytes, pos: int, stop: int) -> None:
    """Keep whole rows until SHOWN_ROWS or SHOWN_BYTES are there."""
    room = SHOWN_BYTES
    while pos < stop and len(reply.shown) < SHOWN_ROWS:
        end = pos + 1 + wire.U32.unpack_from(data, pos + 1)[0]
        room -= end - pos
        if room < 0:
            if not reply.shown:
                reply.shown.append(b"")
            return
        reply.shown.append(data[pos:end])
        pos = end
