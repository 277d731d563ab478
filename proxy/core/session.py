"""The waist: every command of every protocol passes Session.decide, everything that comes back Session.reveal.

decide: tape the command -> policy -> masks' guard -> hold for a human if need be -> tape the verdict -> Permit,
or Refused. A Permit is not yet durable: TargetWriter.flush() commits the tape before it writes a byte, so that
a pipeline of commands costs one commit, and no caller can forget it (promise 2).
reveal: mask -> tape -> hand back; UserWriter.flush() waits until the tape has it before the user gets it.

Where a target names auditors (original_to), what a mask changed goes as it was onto a second tape, encrypted to them
alone; it is opened when a mask changes something for the first time. Unmasked bytes go from the event to that tape and
nowhere else. Everything that holds for the tape holds for this one: if it fails, the session ends.

Deliberately left out: any knowledge of a protocol, of SQL, of files. What fails here fails closed: a policy
that raises is a Deny, a masker that raises ends the session, a tape that fails ends the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Literal, assert_never

import msgpack

from proxy.core.errors import Refused, TapeError
from proxy.core.events import Chunk, Command, Document, Event, Frame, Output, Remark, Resize, Result, Rows
from proxy.core.gate import Gate, Pending, Plan, StreamMask
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Given, Hold, Mask, Verdict
from recorder.format import PAYLOAD_LIMIT
from recorder.tape import ERR, GATE, OUT, USER, Kind, Tape

OnHold = Callable[[Pending], Awaitable[None]]
CloseStatus = Literal["closed", "failed"]

# More text than a human reads before approving; the full bytes are on the tape as WIRE records.
TEXT_LIMIT: Final = 256 * 1024

# A peer's text may hold what UTF-8 cannot (surrogateescape): no reason to end a session, the bytes are in WIRE records.
_pack = msgpack.Packer(use_bin_type=True, unicode_errors="replace").pack
_SEAL: Final = object()


class Permit:
    """Leave for one command to go to the target, made by Session.decide alone; it is spent by sending it."""

    __slots__ = ("_plan", "_plan_for", "_rest", "_session", "approved", "command", "masks", "number", "rule", "spent")

    def __init__(self, seal: object, session: Session, command: Command, allow: Allow, number: int) -> None:
        if seal is not _SEAL:
            raise TypeError("a Permit is made by Session.decide only")
        self._session = session
        self._rest = command.rest_bytes
        self._plan: Plan | None = None
        self._plan_for: object = None
        self.command = command
        self.masks: tuple[Mask, ...] = allow.masks
        self.rule = allow.rule
        self.number = number  # of the COMMAND record on the tape
        self.approved = False  # a human said yes to it
        self.spent = False

    def part(self, data: bytes) -> Part:
        """Return the next piece of this command's body; more than the command announced is our own bug."""
        assert len(data) <= self._rest, "a part beyond the announced length"
        self._rest -= len(data)
        return Part(self, data)


class Part:
    """A later piece of a permitted command's body."""

    __slots__ = ("permit", "wire")

    def __init__(self, permit: Permit, wire: bytes) -> None:
        self.permit = permit
        self.wire = wire


class Input:
    """What a user sends into a stream (flow) that a permit has opened: data as taped, wire as sent."""

    __slots__ = ("data", "flow", "permit", "wire")

    def __init__(self, permit: Permit, flow: int, data: bytes, wire: bytes) -> None:
        self.permit = permit
        self.flow = flow
        self.data = data
        self.wire = wire


class Session:
    """One user on one target: its tape, its decisions, its masks."""

    def __init__(self, gate: Gate, identity: Identity, target: Target, tape: Tape) -> None:
        self.gate = gate
        self.identity = identity
        self.target = target
        self.tape = tape
        if target.encrypt_to and not tape.header.get("enc"):
            raise TapeError("the target's tapes are to be encrypted, and this one is not")  # a protocol's bug
        self._original: Tape | None = None
        self._pending: dict[str, Pending] = {}  # by the approval's id: streams of one session wait apart
        self._streams: dict[tuple[int, str], tuple[tuple[Mask, ...], StreamMask | None]] = {}
        self._seen_masks: dict[Mask, None] = {}
        self._said = ""  # why the user does all this
        self._closed = False

    @property
    def id(self) -> str:
        """The tape's id (ULID), which is the session's."""
        return self.tape.sid

    # -- towards the target ---------------------------------------------------------------------------

    async def decide(
        self,
        command: Command,
        on_hold: OnHold,
        follows: Permit | None = None,
        masks: tuple[Mask, ...] = (),
        given: Given | None = None,
    ) -> Permit:
        """Return leave for the command, or raise Refused. Everything about it is on the tape when this returns.

        on_hold is awaited at once when the command is held, so that the protocol can tell its user. follows: the
        permit under which this very command was prepared to run (PostgreSQL's Bind, for its Execute): the rules
        of this moment are asked again, but what a human has approved then is not held a second time.
        masks: those of an earlier permit whose answer this asks for (a job that runs at the target); they are put on.
        given: an approval of this very command that outlived the process which asked for it.
        Raises Refused, TapeError.
        """
        shown = self._as_seen(command)
        number = self._tape_command(shown)
        verdict = await self._judge(command)
        approval: str | None = None
        withdrawn = False
        if isinstance(verdict, Hold):
            approved = follows is not None and follows._session is self and follows.approved
            if given is not None and given.rule == verdict.rule:
                approval = given.approval
                self._tape_approval(number, approval, "approved", by=given.by)
                verdict = Allow(verdict.rule, verdict.masks)
            elif command.prepares or (approved and follows is not None and follows.rule == verdict.rule):
                verdict = Allow(verdict.rule, verdict.masks)
            else:
                verdict, approval, withdrawn = await self._hold(command, shown, verdict, number, on_hold)
        if masks and not isinstance(verdict, Deny):
            verdict = replace(verdict, masks=tuple(dict.fromkeys((*masks, *verdict.masks))))
        self._tape_verdict(number, verdict, approval)
        if isinstance(verdict, Deny):
            raise Refused(verdict, approval, withdrawn)
        for mask in verdict.masks:
            self._seen_masks[mask] = None
        permit = Permit(_SEAL, self, command, verdict, number)
        permit.approved = approval is not None
        return permit

    async def would_refuse(self, command: Command) -> bool:
        """Tell whether a command is refused whatever else is found out about it; nothing of this is on the tape.

        For what a question to the target would give away (a dry run tells whether a table is there): who may not ask
        for the command is not told. decide() decides.
        """
        return isinstance(await self._judge(command), Deny)

    async def would_mask(self, command: Command) -> tuple[Mask, ...]:
        """Return the masks that the rules put on a command, before any guard of theirs; () where they refuse it."""
        if not self.gate.identities.valid(self.identity):
            return ()
        try:
            verdict: Verdict = await self.gate.policy(self.identity, self.target, command)
        except Exception:  # fails closed: nothing is changed, and decide() refuses
            return ()
        return () if isinstance(verdict, Deny) else verdict.masks

    def withdraw(self) -> bool:
        """Take back what is held now, if anything; each decide() raises Refused(withdrawn)."""
        for pending in tuple(self._pending.values()):
            pending.withdraw()
        return bool(self._pending)

    @property
    def held(self) -> bool:
        """Whether a command waits for a human at this moment."""
        return bool(self._pending)

    def _as_seen(self, command: Command) -> Command:
        """What tape and approvers get to read: of a text that was read off a screen, what masks let the user see.

        A shell completes a name that is masked on its way to the user; rules are asked about the true line.
        """
        mask = None if command.exact or not self._seen_masks else self.gate.masker.stream(tuple(self._seen_masks))
        if mask is None:
            return command

        def seen(text: str) -> str:
            data = mask.feed(text.encode("utf-8", "surrogateescape") + b"\n") + mask.flush()
            return data.decode("utf-8", "surrogateescape").removesuffix("\n")

        return replace(command, text=seen(command.text), objects=tuple(seen(one) for one in command.objects))

    def _tape_command(self, command: Command) -> int:
        if command.why:
            self._tape_intent(command.why, command.flow)
        if command.data is not None:
            if command.data:
                self.tape.append(USER, Kind.WIRE, command.data, flow=command.flow)
        elif command.wire:
            self.tape.append(USER, Kind.WIRE, command.wire)
        entry: dict[str, object] = {"verb": command.verb, "kind": command.kind, "text": command.text[:TEXT_LIMIT]}
        if command.objects:
            entry["objects"] = command.objects  # msgpack takes tuples
        if not command.exact:
            entry["exact"] = False
        if command.flow is not None:
            entry["flow"] = command.flow
        entry |= command.taped_facts
        return self.tape.append(USER, Kind.COMMAND, _pack(entry), entry)

    async def _judge(self, command: Command) -> Allow | Hold | Deny:
        if not self.gate.identities.valid(self.identity):
            return Deny("identity", "the login has expired or was revoked")
        try:
            verdict: Verdict = await self.gate.policy(self.identity, self.target, command)
            if not isinstance(verdict, Deny) and verdict.masks:
                guard = self.gate.masker.guard(verdict.masks, command)
                if guard is not None:
                    return guard
            return verdict
        except Exception as error:  # fails closed: a policy or guard that raises allows nothing
            self._mark("policy-error", type(error).__name__)
            return Deny("policy-error", "the policy could not be evaluated; ask the operator to look at the log")

    async def _hold(
        self, command: Command, shown: Command, hold: Hold, number: int, on_hold: OnHold
    ) -> tuple[Allow | Deny, str | None, bool]:
        try:
            pending = await self.gate.approvals.open(
                self.id, self.identity, self.target, shown.explained(self._said), hold
            )
        except Exception as error:  # fails closed: what nobody can be asked about is not allowed
            self._mark("approval-error", type(error).__name__)
            return Deny(hold.rule, "the approval could not be opened; ask the operator to look at the log"), None, False
        self._pending[pending.id] = pending
        self._tape_approval(number, pending.id, "pending", rule=hold.rule, approvers=list(hold.approvers))
        try:
            await self.tape.commit()
            await on_hold(pending)
            decision = await pending.wait()
        except asyncio.CancelledError:
            pending.withdraw()
            self._tape_approval(number, pending.id, "withdrawn")
            raise
        finally:
            self._pending.pop(pending.id, None)
        self._tape_approval(number, pending.id, decision.outcome, by=decision.by, reason=decision.reason)
        if decision.outcome != "approved":
            return (
                Deny(hold.rule, _outcome_text(decision.outcome, decision.by, decision.reason)),
                pending.id,
                (decision.outcome == "withdrawn"),
            )
        # The rules of this moment count: what was denied while it waited stays denied.
        again = await self._judge(command)
        if isinstance(again, Deny):
            return again, pending.id, False
        if isinstance(again, Hold) and (again.rule, again.approvers) != (hold.rule, hold.approvers):
            return Deny(again.rule, "the rules changed while it waited; run it again"), pending.id, False
        return Allow(hold.rule, again.masks), pending.id, False

    def _tape_verdict(self, number: int, verdict: Allow | Deny, approval: str | None) -> None:
        entry: dict[str, object] = {"command": number, "rule": verdict.rule}
        if isinstance(verdict, Deny):
            entry["verdict"] = "deny"
            entry["reason"] = verdict.reason
        else:
            entry["verdict"] = "allow"
            if verdict.masks:
                entry["masks"] = list(dict.fromkeys(mask.rule for mask in verdict.masks))
        if approval is not None:
            entry["approval"] = approval
        self.tape.append(GATE, Kind.VERDICT, _pack(entry), entry)

    def _tape_approval(self, number: int, approval: str, state: str, **more: object) -> None:
        self.tape.append(GATE, Kind.APPROVAL, _pack({"command": number, "id": approval, "state": state, **more}))

    # -- towards the user -----------------------------------------------------------------------------

    def reveal(self, permit: Permit | None, event: Event) -> bytes:
        """Mask the event, tape what is left, and return the bytes for the user. permit: whose answer this is.

        None stands for what no command asked for (notices, notifications): all masks that this session has
        met so far apply to it. The caller is UserWriter, which waits for the tape.
        """
        unmasked: bytes | None = None
        match event:
            case Output():
                data = event.data
            case Frame():
                data = event.wire
            case Rows():
                data, unmasked = self._mask_rows(permit, event), event.wire
            case Remark():
                data, unmasked = self._mask_remark(permit, event), event.wire
            case Chunk():
                return self._reveal_chunk(permit, event)
            case Document():
                return self._reveal_document(permit, event)
            case Resize():
                self.tape.append(GATE, Kind.RESIZE, _pack([event.columns, event.rows]), flow=event.flow)
                return b""
            case _:
                assert_never(event)
        if isinstance(event, Frame) and not event.taped:
            return data
        flow = event.flow if isinstance(event, Rows) else None
        number = self.tape.append(OUT, Kind.WIRE, data, flow=flow) if data else None
        if self.target.original_to and unmasked is not None and unmasked != data:
            self._keep_original(permit, unmasked, number, len(data))
        return event.rewrap(data) if isinstance(event, Rows) else data

    def _reveal_chunk(self, permit: Permit | None, chunk: Chunk) -> bytes:
        """The same for a piece of a stream: what is taped is its data, under its flow."""
        if not chunk.taped:
            return chunk.wire
        mask = self._stream_mask(permit, chunk) if chunk.masked else None
        if mask is None:
            if chunk.data:
                self.tape.append(_CHANNELS[chunk.stream], Kind.WIRE, chunk.data, flow=chunk.flow)
            return chunk.wire
        data = mask.feed(chunk.data)
        if chunk.flush:
            data += mask.flush()
        number = self.tape.append(_CHANNELS[chunk.stream], Kind.WIRE, data, flow=chunk.flow) if data else None
        if self.target.original_to and chunk.data and chunk.data != data:
            self._keep_original(permit, chunk.data, number, len(data))
        if data == chunk.data:
            return chunk.wire
        return chunk.rewrap(data) if data else b""

    def _reveal_document(self, permit: Permit | None, document: Document) -> bytes:
        """The same for a whole structured answer."""
        masks = tuple(self._seen_masks) if permit is None else permit.masks
        command = permit.command if permit is not None else _NO_COMMAND
        fields = self.gate.masker.fields(masks, command) if masks else None
        data = document.data if fields is None else document.rewrite(fields)
        number = self.tape.append(OUT, Kind.WIRE, data, flow=document.flow) if data else None
        if data == document.data:
            return document.wire
        if self.target.original_to:
            self._keep_original(permit, document.data, number, len(data))
        return document.rewrap(data)

    def _stream_mask(self, permit: Permit | None, chunk: Chunk) -> StreamMask | None:
        """The mask of a stream. Masks add up: what a later command of the same stream brings stays to its end."""
        place = (chunk.flow, chunk.stream)
        masks, mask = self._streams.get(place, ((), None))
        wanted = tuple(self._seen_masks) if permit is None else permit.masks
        if not set(wanted) <= set(masks):
            masks = tuple(dict.fromkeys(masks + wanted))
            new = self.gate.masker.stream(masks)
            if mask is not None and new is not None and mask.held_bytes:
                held = mask.flush()  # masked by the old ones; under the new ones it is looked at again
                self._mark("masks-changed", f"{len(held)} bytes of a stream met the masks of two commands")
                new.feed(held)
            mask = new
            self._streams[place] = (masks, mask)
        return mask

    def held_back(self, flow: int) -> int:
        """How many bytes of a stream a mask keeps until more comes; Chunk(flush=True) lets go of them."""
        found = (self._streams.get((flow, stream)) for stream in ("out", "err"))
        return sum(each[1].held_bytes for each in found if each is not None and each[1] is not None)

    def forget_stream(self, flow: int) -> None:
        """A stream is over; its number may be given to another."""
        for stream in ("out", "err"):
            self._streams.pop((flow, stream), None)

    def _keep_original(self, permit: Permit | None, unmasked: bytes, number: int | None, size: int) -> None:
        """Tape what a mask changed as it came; number and size: of what the main tape has in its place."""
        if self._original is None:
            self._original = self.gate.recorder.open_original(self.tape, self.target.original_to)
            keys = ", ".join(recipient.id for recipient in self.target.original_to)
            self._mark("original", f"what masks change is kept as it was, encrypted to {keys}")
        entry: dict[str, object] = {"label": "original", "text": ""}
        if number is not None:
            entry |= {"record": number, "records": -(-size // PAYLOAD_LIMIT)}
        if permit is not None:
            entry["command"] = permit.number
        self._original.append(GATE, Kind.MARK, _pack(entry))
        self._original.append(OUT, Kind.WIRE, unmasked)

    async def written(self) -> None:
        """Wait until the tapes have all that was revealed, as far as the recording mode asks. Raises TapeError."""
        if self._original is None:
            await self.tape.written()
        else:
            await asyncio.gather(self.tape.written(), self._original.written())  # one flush of the log for both

    def _mask_rows(self, permit: Permit | None, rows: Rows) -> bytes:
        if permit is None or not permit.masks:
            if self._seen_masks and permit is None:
                raise TapeError("rows without a command")  # our own bug, and the only safe way out
            return rows.wire
        if permit._plan_for is not rows.columns:
            permit._plan = self.gate.masker.plan(permit.masks, permit.command, rows.columns)
            permit._plan_for = rows.columns
            if permit._plan is not None:
                fields = [[rows.columns[i].name, i, rule] for i, rule in permit._plan.rules.items()]
                entry: dict[str, object] = {"command": permit.number, "fields": fields}
                if permit._plan.scanned:
                    entry["scanned"] = sorted(permit._plan.scanned)
                self.tape.append(GATE, Kind.MASKMAP, _pack(entry))
        if permit._plan is None:
            return rows.wire
        return rows.rewrite(permit._plan.cells)

    def _mask_remark(self, permit: Permit | None, remark: Remark) -> bytes:
        masks = tuple(self._seen_masks) if permit is None else permit.masks
        if not masks:
            return remark.wire
        fields = self.gate.masker.remark(masks, remark.fields)
        return remark.wire if fields == remark.fields else remark.rewrite(fields)

    # -- beside the stream ----------------------------------------------------------------------------

    def result(self, permit: Permit, result: Result) -> None:
        """Tape how a command ended, for replay."""
        entry: dict[str, object] = {"command": permit.number, "tag": result.tag}
        if result.columns:
            entry["columns"] = result.columns
            entry["rows"] = result.rows
        entry["count"] = result.row_count
        entry["bytes"] = result.size_bytes
        if result.error is not None:
            entry["error"] = dict(result.error)
        entry |= result.details
        self.tape.append(GATE, Kind.RESULT, _pack(entry))

    def ignored(self, wire: bytes, flow: int | None = None) -> None:
        """Tape bytes of the user that do not go to the target: it would skip them, or another stands for them.

        flow: the stream of which they are the user's data; None: a whole message.
        """
        self.tape.append(USER, Kind.WIRE, wire, flow=flow)

    def mark(self, label: str, text: str) -> None:
        """Tape a remark of the gate."""
        self._mark(label, text[:TEXT_LIMIT])

    def intent(self, text: str) -> None:
        """Tape why the user says it does this; approvers are shown the last that was said."""
        self._said = text
        self._tape_intent(text)

    def _tape_intent(self, text: str, flow: int | None = None) -> None:
        more = {} if flow is None else {"flow": flow}
        self.tape.append(USER, Kind.INTENT, _pack({"text": text[:TEXT_LIMIT], **more}))

    def _mark(self, label: str, text: str = "") -> None:
        self.tape.append(GATE, Kind.MARK, _pack({"label": label, "text": text}))

    async def close(self, status: CloseStatus, reason: str = "") -> None:
        """Withdraw what is held and seal the tape. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.withdraw()
        if self._original is None:
            await self.tape.close(status, reason)
            return
        # Each is sealed even if the other fails: what is there stays verifiable.
        tapes = (self.tape, self._original)
        ends = await asyncio.gather(*(tape.close(status, reason) for tape in tapes), return_exceptions=True)
        for error in ends:
            if error is not None:
                raise error


_NO_COMMAND: Final = Command("", "", "unknown", "")  # what nobody asked for
_CHANNELS: Final = {"out": OUT, "err": ERR}


def _outcome_text(outcome: str, by: str, reason: str) -> str:
    match outcome:
        case "denied":
            return f"denied by {by}" + (f": {reason}" if reason else "")
        case "expired":
            return "nobody approved it in time"
        case _:
            return "the request was withdrawn"
