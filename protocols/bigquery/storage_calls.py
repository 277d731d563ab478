"""One call of the Storage Read API in its caller's session: decide, pass on, pass back; and how a call fails.

CreateReadSession is decided as a read of its table, and what it gives is noted as its caller's, with the masks of its
permit. ReadRows and SplitReadStream name what was given: what is not the caller's own reads as an unknown name does.
They are decided as polls, under the masks of then.

Rows pass as they come where no mask applies. Under masks each answer is read, masked (in a thread where it is large)
and written anew, of known fields alone; what cannot be masked ends the call. A message is on the tape, behind its
length, before the user gets it; so is how the call ended. The next is read when the user has taken the one before.

Nothing is decided here. Source: bigquery note 6, 7 and 10; gRPC status codes; google/rpc/code.proto.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

import grpc  # type: ignore[import-untyped, unused-ignore]

from protocols.bigquery import storage_requests as requests
from protocols.bigquery import storage_wire as wire
from protocols.bigquery.bodies import decoded
from protocols.bigquery.facts import KEPT_SQL, KEPT_TABLE
from protocols.bigquery.lineage import lineage_of
from protocols.bigquery.ownership import hidden, stream_key, table_key
from protocols.bigquery.paging import OWN_COLUMNS
from protocols.bigquery.schema import Lineage, Schema, Unreadable, columns, of_table, unknown
from protocols.bigquery.storage_arrow import ArrowRows
from protocols.bigquery.storage_avro import AvroRows
from protocols.bigquery.storage_dial import Channels, metadata
from protocols.bigquery.upstream import Upstream
from proxy.core.errors import GatecastError, Refused, TargetPeerError
from proxy.core.events import CellMask, Chunk, Column, Command, Result, Rows
from proxy.core.gate import Gate, Pending, Plan
from proxy.core.http.heads import BadRequest
from proxy.core.jobs import Entry, Jobs, Owner, owner_of
from proxy.core.session import Input, Permit, Session
from proxy.core.verdict import Mask
from proxy.core.writers import TargetWriter, UserWriter

SERVICE: Final = "/google.cloud.bigquery.storage.v1.BigQueryRead/"
THREAD_BYTES: Final = 256 * 1024  # rows above it are masked in a thread: bigquery note 9
# In Entry.facts of a read session: the schema of its rows, {"arrow": base64} or {"avro": text}.
KEPT_SCHEMA: Final = "storage_schema"
NOT_OURS: Final = "the target did not accept the gateway's credential; ask its operator"

# What the target says goes on with its code; but a credential of ours that it does not take is no fault of the user's.
_PASSED: Final = frozenset(grpc.StatusCode) - {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK}


class Failed(GatecastError):
    """The call ends with this status; text is for the user."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class UserCall(Protocol):
    """The user's side of a call: grpc.aio.ServicerContext."""

    async def write(self, message: bytes) -> None: ...
    def time_remaining(self) -> float | None: ...


class RowsReader(Protocol):
    """Reads rows of one session and masks them: ArrowRows, AvroRows."""

    schema: Schema

    def mask(self, data: bytes, cells: Sequence[CellMask | None]) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Masked:
    """How the rows of a stream are masked. kind and schema: of the rows, as the session gave them."""

    kind: Literal["arrow", "avro"]
    schema: bytes | str
    reader: RowsReader
    columns: tuple[Column, ...]
    plan: Plan | None


class _To:
    """Where a writer's bytes go."""

    def __init__(self, take: Callable[[bytes], Awaitable[None]]) -> None:
        self._take = take

    async def write(self, data: bytes) -> None:
        await self._take(data)


class Call:
    """One call of a user in a session."""

    def __init__(
        self,
        context: UserCall,
        session: Session,
        flow: int,
        gate: Gate,
        channels: Channels,
        headers: Mapping[str, str],
        log: Any,
    ) -> None:
        if gate.jobs is None:
            raise Failed(grpc.StatusCode.UNAVAILABLE, "gatecast: there is no registry of read sessions here")
        self._context = context
        self._session = session
        self._flow = flow
        self._gate = gate
        self._jobs: Jobs = gate.jobs
        self._channels = channels
        self._headers = headers
        self._log = log
        self._owner: Owner = owner_of(session.identity)
        # Each message is written by itself: two of them are not one.
        self._writer = UserWriter(_To(context.write), session, apart_bytes=1 << 62)
        self._permit: Permit | None = None
        self._rows = 0
        self._size = 0

    async def run(self, method: str, request: bytes) -> None:
        """Serve it. Raises Failed, TapeError."""
        work = {
            "CreateReadSession": self._create, "ReadRows": self._read, "SplitReadStream": self._split,
        }[method]  # fmt: skip
        try:
            await work(request)
        except Failed as failed:
            await self._failed(failed)
            raise
        except asyncio.CancelledError:
            self._over("ended early")
            raise
        except wire.Garbage as error:
            raise await self._bad(request, str(error)) from error
        except BadRequest as error:
            raise await self._bad(request, error.text) from error
        except Unreadable as error:
            self._session.mark("unreadable", str(error))
            text = f"gatecast: {str(error).removeprefix('gatecast: ')}"
            raise await self._failed(Failed(grpc.StatusCode.PERMISSION_DENIED, text)) from error
        except TargetPeerError as error:
            self._session.mark("target-error", str(error))
            raise await self._failed(Failed(grpc.StatusCode.INTERNAL, f"gatecast: {error}")) from error

    async def _bad(self, request: bytes, text: str) -> Failed:
        self._session.ignored(wire.framed(request), self._flow)
        self._session.mark("bad-request", text)
        return await self._failed(Failed(grpc.StatusCode.INVALID_ARGUMENT, f"gatecast: {text}"))

    async def _failed(self, failed: Failed) -> Failed:
        """Tape how the call failed, before its user hears of it."""
        self._log.info("call failed", code=failed.code.name, reason=failed.text[:500])
        self._over("failed", {"code": failed.code.name, "message": failed.text})
        await self._session.written()
        return failed

    def _over(self, tag: str, error: Mapping[str, str] | None = None, **details: object) -> None:
        if self._permit is None:
            if error is not None:
                self._session.mark("refused", f"{error['code']}: {error['message']}")
            return
        result = Result(
            tag, row_count=self._rows, size_bytes=self._size, error=error, details={"flow": self._flow, **details}
        )
        self._session.result(self._permit, result)

    # -- deciding ---------------------------------------------------------------------------------------

    async def _decide(self, command: Command, masks: tuple[Mask, ...]) -> Permit:
        try:
            permit = self._permit = await self._session.decide(command, self._on_hold, masks=masks)
        except Refused as refused:
            self._log.info("call refused", rule=refused.deny.rule, text=command.text[:200])
            text = f"gatecast: refused by {refused.deny.rule}: {refused.deny.reason}"
            if refused.approval is not None:
                text += f" (approval {refused.approval})"
            raise Failed(grpc.StatusCode.PERMISSION_DENIED, text) from refused
        return permit

    async def _on_hold(self, pending: Pending) -> None:
        self._log.info("call held", approval=pending.id, rule=pending.hold.rule)

    def _unknown(self, command: Command, what: str, name: str) -> Failed:
        """What a name gets that is not the caller's, or nobody's: words of the request, and no look at the target."""
        self._session.ignored(command.data or b"", self._flow)
        return Failed(grpc.StatusCode.NOT_FOUND, f"Not found: {what} {name}")

    async def _create(self, request: bytes) -> None:
        asked = requests.read_create(request)
        analysis = None
        if asked.restriction and self._gate.warehouse is not None:
            analysis = await self._gate.warehouse.read(asked.sql, asked.project, None)
        found = requests.filter_of(asked, analysis)
        command = requests.command(asked, found, self._flow, request)
        entry: Entry | None = None
        if asked.hidden:
            entry = await self._jobs.find(table_key(self._session.target.name, *asked.table), self._owner)
            if entry is None:
                raise self._unknown(command, "Table", f"{asked.table[0]}:{'.'.join(asked.table[1:])}")
        permit = await self._decide(command, () if entry is None else entry.masks)
        self._no_oracle(asked, found, permit)
        if permit.masks and not asked.hidden:
            await self._own_columns(asked)
        routing = f"read_session.table={quote(asked.values['read_session']['table'], safe='')}"
        answer = await self._ask("CreateReadSession", permit, asked.wire(plain=bool(permit.masks)), routing)
        await self._note(asked, permit, entry, answer)
        streams = len(wire.decode(wire.READ_SESSION, answer, strict=False).get("streams", ()))
        await self._say(permit, answer)
        self._over("CreateReadSession", streams=streams)

    async def _own_columns(self, asked: requests.Asked) -> None:
        """See that the columns are the table's own: those of a materialized view are its tables', under other names."""
        project, dataset, table = (quote(each, safe=":") for each in asked.table)
        path = f"/bigquery/v2/projects/{project}/datasets/{dataset}/tables/{table}?fields=type&prettyPrint=false"
        status, body = await Upstream(self._gate, self._session).ask("GET", path)
        found = decoded(body) if status == 200 else None
        if found is None or found.get("type") not in OWN_COLUMNS:
            raise Unreadable("masks apply, and this is no table with columns of its own; query it")

    def _no_oracle(self, asked: requests.Asked, found: requests.Filter, permit: Permit) -> None:
        """Refuse a restriction that asks for what masks hide. Which columns it reads must be known."""
        if not asked.restriction or not permit.masks:
            return
        reason = ""
        if found.opaque or asked.hidden or any(table != asked.name for table in found.tables):
            reason = "columns of this table are masked, and nobody can tell which ones the row_restriction reads"
        else:
            columns = requests.filtered(asked, found)
            plan = self._gate.masker.plan(permit.masks, permit.command, columns) if columns else None
            masked = [] if plan is None else [columns[at].name for at in plan.rules if at not in plan.scanned]
            if masked:
                reason = f"the row_restriction reads a masked column ({', '.join(sorted(set(masked)))[:200]})"
        if reason:
            self._session.mark("refused", reason)
            raise Failed(grpc.StatusCode.PERMISSION_DENIED, f"gatecast: {reason}")

    async def _note(self, asked: requests.Asked, permit: Permit, above: Entry | None, answer: bytes) -> None:
        """Write down whose the new session is, before anybody hears of it."""
        values = wire.decode(wire.READ_SESSION, answer, strict=False)
        key = stream_key(self._session.target.name, str(values.get("name", "")))
        if key is None or key.kind != "read_session" or not key.sane:
            raise TargetPeerError("the target gave a read session without a usable name")
        facts: dict[str, Any] = {**({} if above is None else above.facts), KEPT_TABLE: asked.name}
        if permit.masks:
            if "arrow_schema" in values:
                serialized = values["arrow_schema"].get("serialized_schema", b"")
                facts[KEPT_SCHEMA] = {"arrow": base64.b64encode(serialized).decode()}
            elif "avro_schema" in values:
                facts[KEPT_SCHEMA] = {"avro": values["avro_schema"].get("schema", "")}
            else:
                raise Unreadable("the target gave no schema of the rows, and masks apply to them")
            # What cannot be masked is refused here, and not when its rows have begun to come.
            await self._masked(permit, facts)
        parent = "" if above is None else above.key.id
        entry = Entry(
            key, self._owner, rule=permit.rule, masks=permit.masks, facts=facts, parent=parent, session=self._session.id
        )
        await self._jobs.add([entry])

    async def _split(self, request: bytes) -> None:
        name, sent = requests.read_split(request)
        permit, _ = await self._follow("SplitReadStream", name, request, "")
        answer = await self._ask("SplitReadStream", permit, sent, f"name={quote(name, safe='')}")
        await self._say(permit, answer)
        self._over("SplitReadStream")

    async def _follow(
        self, method: Literal["ReadRows", "SplitReadStream"], name: str, request: bytes, more: str
    ) -> tuple[Permit, Entry]:
        """Decide on going on with a read session, or with a job's result."""
        key = stream_key(self._session.target.name, name)
        entry = None if key is None else await self._jobs.find(key, self._owner)
        table = str(entry.facts.get(KEPT_TABLE, "")) if entry is not None else ""
        command = requests.follow(method, name, table, self._flow, request, more)
        if entry is None or entry.state not in ("open", "sent"):
            raise self._unknown(command, "Stream", name)
        return await self._decide(command, entry.masks), entry

    # -- rows -------------------------------------------------------------------------------------------

    async def _read(self, request: bytes) -> None:
        name, offset, sent = requests.read_rows(request)
        permit, entry = await self._follow("ReadRows", name, request, f" from row {offset}" if offset else "")
        masked: _Masked | None = None
        if permit.masks and KEPT_SCHEMA in entry.facts:
            masked = await self._masked(permit, entry.facts)
        async with aclosing(self._stream(permit, sent, f"read_stream={quote(name, safe='')}")) as answers:
            async for message in answers:
                count = wire.row_count(message)
                if permit.masks:
                    values = wire.decode(wire.ROWS, message, strict=False)
                    if masked is None:  # a job's own stream: its first answer says what its rows are like
                        masked = await self._masked(permit, {**entry.facts, KEPT_SCHEMA: _schema_in(values)})
                    await self._say_masked(permit, masked, message, values)
                else:
                    await self._say(permit, message)
                self._rows += count
        self._over("ReadRows")

    async def _masked(self, permit: Permit, facts: Mapping[str, Any]) -> _Masked:
        """Choose the masks of rows by their schema, and where they come from. Raises Unreadable."""
        kept = facts.get(KEPT_SCHEMA)
        if not isinstance(kept, Mapping) or len(kept) != 1:
            raise Unreadable("the schema of these rows is not known, and masks apply to them")
        reader: RowsReader
        schema: bytes | str
        if "arrow" in kept:
            kind: Literal["arrow", "avro"] = "arrow"
            schema = base64.b64decode(kept["arrow"])
            reader = ArrowRows(schema)
        else:
            kind, schema = "avro", str(kept["avro"])
            reader = AvroRows(schema)
        lineage = await self._lineage(facts, reader.schema)
        found = columns(reader.schema, lineage)
        return _Masked(kind, schema, reader, found, self._gate.masker.plan(permit.masks, permit.command, found))

    async def _lineage(self, facts: Mapping[str, Any], schema: Schema) -> Lineage:
        if KEPT_SQL in facts:
            return await lineage_of(self._gate.warehouse, facts, schema)
        project, dataset, table = [*str(facts.get(KEPT_TABLE, "")).rsplit(".", 2), "", ""][:3]
        return unknown if not table or hidden(dataset) else of_table(project, dataset, table, schema)

    async def _say_masked(self, permit: Permit, masked: _Masked, message: bytes, values: dict[str, Any]) -> None:
        """Mask one answer, and give it to the user."""
        for kind, field, inside in (("arrow", "arrow_schema", "serialized_schema"), ("avro", "avro_schema", "schema")):
            if field in values and (kind != masked.kind or values[field].get(inside) != masked.schema):
                raise Unreadable("the schema in an answer is not the one that its masks were chosen by")
        other = "avro_rows" if masked.kind == "arrow" else "arrow_record_batch"
        if other in values:
            raise Unreadable("an answer has rows in another form than its session")
        values.pop("uncompressed_byte_size", None)
        plan = masked.plan
        known = wire.framed(wire.encode(wire.ROWS, values))
        made = known
        if plan is not None:
            write = partial(_written, masked, values, plan.cells)
            made = await asyncio.to_thread(write) if len(message) > THREAD_BYTES else write()
        event = Rows(masked.columns, known, lambda cells: made, self._flow, _unframed)
        await self._flush(self._writer.send(permit, event))

    # -- the two sides ----------------------------------------------------------------------------------

    async def _ask(self, method: str, permit: Permit, request: bytes, routing: str) -> bytes:
        """Send a request, and return its only answer."""
        found = b""
        async with aclosing(self._stream(permit, request, routing, method)) as answers:
            async for message in answers:
                found = message
        return found

    async def _stream(
        self, permit: Permit, request: bytes, routing: str, method: str = "ReadRows"
    ) -> AsyncGenerator[bytes, None]:
        """Send a request, and yield its answers. Raises Failed, TargetPeerError, TapeError."""
        session = self._session
        credential = await self._gate.credentials.get(session.identity, session.target)
        fields = metadata(credential, routing, self._headers)
        channel = self._channels.channel(session.target)
        calls: list[Any] = []

        async def send(data: bytes) -> None:
            timeout = self._context.time_remaining()
            calls.append(channel.unary_stream(SERVICE + method)(data, timeout=timeout, metadata=fields))

        writer = TargetWriter(_To(send), session)
        writer.send(permit)
        writer.send(Input(permit, self._flow, b"", request))  # as the user sent it, it is on the tape with the command
        await writer.flush()
        (call,) = calls
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                yield bytes(message)
            code, text = await call.code(), await call.details() or ""
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details() or ""
        finally:
            call.cancel()
        if code is not grpc.StatusCode.OK:
            raise self._status(permit, code, text)

    def _status(self, permit: Permit, code: grpc.StatusCode, text: str) -> GatecastError:
        """How the target's failure is told. Under masks its words pass as an error's do: they may quote values."""
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return TargetPeerError(NOT_OURS)
        self._log.info("target failed", code=code.name)
        if permit.masks:
            fields = {"severity": "ERROR", "code": "", "message": text}
            text = self._gate.masker.remark(permit.masks, fields).get("message", "")
        return Failed(code if code in _PASSED else grpc.StatusCode.UNKNOWN, text)

    async def _say(self, permit: Permit, message: bytes) -> None:
        event = Chunk(self._flow, "out", wire.framed(message), message, bytes, masked=False)
        await self._flush(self._writer.send(permit, event))

    async def _flush(self, message: bytes) -> None:
        self._size += len(message)
        await self._writer.flush()


def _written(masked: _Masked, values: Mapping[str, Any], cells: Sequence[CellMask | None]) -> bytes:
    """Return an answer with its rows masked, behind its length. Raises Unreadable."""
    made = dict(values)
    field, inside = ("arrow_record_batch", "serialized_record_batch")
    if masked.kind == "avro":
        field, inside = ("avro_rows", "serialized_binary_rows")
    rows = made.get(field)
    if rows is not None and rows.get(inside):
        made[field] = {**rows, inside: masked.reader.mask(rows[inside], cells)}
    return wire.framed(wire.encode(wire.ROWS, made))


def _schema_in(values: Mapping[str, Any]) -> dict[str, str]:
    """The schema that an answer brings, as it is kept with a session."""
    if "arrow_schema" in values:
        return {"arrow": base64.b64encode(values["arrow_schema"].get("serialized_schema", b"")).decode()}
    return {"avro": values["avro_schema"].get("schema", "")} if "avro_schema" in values else {}


def _unframed(message: bytes) -> bytes:
    return message[5:]
